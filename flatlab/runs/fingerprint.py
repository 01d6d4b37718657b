"""Which run a configuration describes: a fingerprint of everything that decides the result, and how two runs differ.

Only fields that differ from their defaults are hashed, so that a field that comes later, with a default that keeps the
old result, changes no fingerprint. Files keep the whole configuration beside it, and what is compared is computed
from that: a file from before there were fingerprints is compared like any other.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatlab.data import ImageData, Reading, Split, load_images
from flatlab.errors import UsageError
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.config import RunConfig
from flatlab.federated.models import default_model, usual_model

DIGITS = 16
"""Hexadecimal digits that are kept of a hash."""


DATA_FIELDS = (
    "dataset",
    "train_samples",
    "test_samples",
    "label_column",
    "hub_config",
    "holdout",
    "image_size",
    "augmentation",
    "partition_column",
    "partition_file",
)
"""Of a run, beside the seed where a subset is drawn: all that decides the digest of its data but the files' content."""


@dataclass(frozen=True)
class Fingerprint:
    """Two runs of one fingerprint end, on one machine, with the same parameters."""

    config: str  # of the configuration
    data: str = ""  # of inputs and labels, after the subset was taken; empty where it is not known
    weights: str = ""  # of the parameters that a checkpoint reports; empty where they are not known

    def agrees(self, other: "Fingerprint") -> bool:
        """Whether both are of one run, or of one checkpoint of it, as far as is known."""
        pairs = (self.data, other.data), (self.weights, other.weights)
        return self.config == other.config and all(not a or not b or a == b for a, b in pairs)

    def plain(self) -> dict[str, str]:
        """Return it as JSON and checkpoints keep it."""
        return {name: value for name, value in vars(self).items() if name != "weights" or value}


@dataclass(frozen=True)
class Difference:
    """One field in which a run is not the one that is asked for."""

    field: str  # hyperparameters as hyper.rho
    found: Any
    wanted: Any


def fingerprint(config: RunConfig, data: str = "") -> Fingerprint:
    """Return the fingerprint of `config`, its model settled (`settled`), and of the data whose digest is `data`."""
    known = ALGORITHMS.get(config.algorithm)  # of a user's own every hyperparameter counts: it is read without its file
    usual = _flat(RunConfig().plain() | {"hyper": known.hyper().model_dump() if known else {}})
    deciding = {name: value for name, value in _flat(config.plain()).items() if usual.get(name) != value}
    text = json.dumps(deciding, sort_keys=True, separators=(",", ":"))
    return Fingerprint(hashlib.sha256(text.encode()).hexdigest()[:DIGITS], data)


def data_digest(data: ImageData) -> str:
    """Return a digest of all that training and evaluation read: pixels, labels, classes, mean and deviation.

    Also of whose each training sample is, where a file or a column says that (`owners_source`).
    """
    digest = hashlib.sha256()
    for split in (data.train, data.test):
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
    digest.update(repr((data.classes, data.mean, data.std, data.augment)).encode())
    if data.train.owners is not None:
        digest.update(data.train.owners.contiguous().numpy().data)
    return digest.hexdigest()[:DIGITS]


def weights_digest(state_dict: Mapping[str, Tensor]) -> str:
    """Return a digest of a model's parameters and buffers; empty where there are none."""
    digest = hashlib.sha256()
    for name, tensor in state_dict.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:DIGITS] if state_dict else ""


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Its parameters and buffers as dense tensors, without whatever else its modules save."""
    found = {**dict(nn.Module.named_parameters(model)), **dict(nn.Module.named_buffers(model))}
    return {name: _plain(value.detach()) for name, value in found.items()}


def _plain(tensor: Tensor) -> Tensor:
    """Its numbers as they lie in memory; of a sparse one places and values."""
    if tensor.layout != torch.strided:
        listed = tensor.to_sparse_coo().coalesce()
        tensor = torch.cat([listed.indices().flatten().to(listed.dtype), listed.values().flatten()])
    return tensor.resolve_conj().resolve_neg()


def owners_source(config: RunConfig) -> str:
    """What, beside images and labels, changes the digest of a run's data, for a sentence; empty where nothing does."""
    if config.partition_file is not None:
        return f"split in {config.partition_file}"
    return "" if config.partition_column is None else f"column {config.partition_column!r}"


def data_source(config: RunConfig) -> tuple[tuple[str, Any], ...]:
    """Return where a run's data come from, name and value; of two digests from one source, what lies there changed."""
    drawn = config.train_samples is not None or config.test_samples is not None
    return (*((name, getattr(config, name)) for name in DATA_FIELDS), ("seed", config.seed if drawn else None))


def require_same_data(runs: Iterable[tuple[object, Any, str]]) -> None:
    """Raise `UsageError` where two runs took their data from one place, which held other data in between.

    `runs` are names, configurations (`RunConfig`) and digests of the data, these empty where they are not known.
    """
    first: dict[tuple[tuple[str, Any], ...], tuple[object, str]] = {}
    for name, config, digest in runs:
        if not digest:
            continue
        other, known = first.setdefault(data_source(config), (name, digest))
        if digest != known:
            owners = owners_source(config)
            raise UsageError(
                f"{other} and {name} were trained on different images or labels, both called {config.dataset}"
                f"{owners and f', or by another {owners}'}: their numbers cannot be compared; keep the runs of one "
                "data set."
            )


def training_digest(train: Split) -> str:
    """Return a digest of the training samples alone, inputs and labels, for a file that divides them."""
    digest = hashlib.sha256()
    for tensor in (train.images, train.labels):
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:DIGITS]


def differences(found: RunConfig, wanted: RunConfig) -> list[Difference]:
    """Every field, and every hyperparameter, in which `found` is not what is `wanted`; both settled."""
    one, other = _flat(found.plain()), _flat(wanted.plain())
    names = sorted(one.keys() | other.keys(), key=_place)
    return [Difference(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)]


def settled(config: RunConfig, root: Path | None = None) -> RunConfig:
    """Return `config` with the model that "auto" stands for; raises `UsageError` where that needs data that are not."""
    if config.model != "auto":
        return config
    return config.model_copy(update={"model": _usual_model(config.dataset, root, config.reading)})


@cache
def _usual_model(dataset: str, root: Path | None, reading: Reading) -> str:
    by_name = usual_model(dataset)  # where there is one, the data need not be at hand
    return by_name or default_model(dataset, load_images(dataset, root=root, reading=reading).input_shape)


def _flat(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by name, hyperparameters as hyper.rho."""
    fields = {name: value for name, value in plain.items() if name != "hyper"}
    return fields | {f"hyper.{name}": value for name, value in plain.get("hyper", {}).items()}


def _place(name: str) -> int:
    """Fields in the order of `RunConfig`."""
    return list(RunConfig.model_fields).index(name.partition(".")[0])
