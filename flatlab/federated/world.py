"""What every process of a run shares and nobody changes: configuration, data, split and the model's form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flatlab.data import ImageData, load_images
from flatlab.errors import UsageError
from flatlab.federated.algorithms.base import Client
from flatlab.federated.config import RunConfig
from flatlab.federated.local_batches import nominal_steps
from flatlab.federated.man import Taps
from flatlab.federated.models import build_model, default_model
from flatlab.federated.parameters import Layout, layout_of
from flatlab.federated.partition import Indices, Options, split_clients
from flatlab.federated.partition.file import read_split
from flatlab.federated.streams import seeded, stream_seed
from flatlab.torch_settings import one_thread, usual_settings

OwnCode = Mapping[str, Sequence[float]]
"""What a user's own "model" and "algorithm" compute in a trial, in a few numbers (own_code.py)."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class World:
    """Everything fixed in a run. Sent to worker processes once; tensors in shared memory are not copied."""

    config: RunConfig
    data: ImageData
    parts: list[Indices]  # client k's samples: (n_k,) int64, positions in data.train
    layout: Layout
    taps: Taps = field(
        default_factory=Taps
    )  # what a trial of the model showed (trial.py); engines take most models without one
    own_code: OwnCode = field(default_factory=dict)  # as the trial showed
    draws: str = ""  # the function of an own algorithm's client that draws random numbers, as its trial showed

    @cached_property
    def samples(self) -> Tensor:
        """n_i of every client, shape (N, 1), in the run's dtype."""
        return torch.tensor([[len(part)] for part in self.parts], dtype=self.dtype)

    @cached_property
    def wt(self) -> Tensor:
        """wt_i = n_i N / sum_j n_j of every client, shape (N, 1)."""
        return self.samples * len(self.parts) / self.samples.sum()

    @cached_property
    def steps(self) -> int:
        """K = E * ceil(mean_i n_i / B)."""
        return nominal_steps(float(np.mean([len(part) for part in self.parts])), self.config)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of parameters, inputs and gradients."""
        return DTYPES[self.config.dtype]

    def new_model(self) -> nn.Module:
        """Build the model with the run's initial parameters, in the run's dtype."""
        return typed_model(self.config, self.data)

    def initial(self, w: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The vectors of a client and of the server before the first round, which begins at `w` (P,).

        Each has storage of its own: `initial` may return w itself, or one tensor twice.
        """
        rules = self.config.rules
        with one_thread(), seeded(self.config.seed, "initial"):
            given = rules.initial(w, self.config.hyperparameters)
        own, server = (
            {name: given[name].to(w.device, copy=True) if name in given else torch.zeros_like(w) for name in names}
            for names in (rules.own, rules.server)
        )
        return own, server

    def client(
        self, t: int, ids: int | list[int], w: Tensor, own: Mapping[str, Tensor], server: Mapping[str, Tensor]
    ) -> Client[Any]:
        """What client `ids` knows as round t begins; for a list of C clients, a stack: `own` is name: (C, P)."""
        return Client(
            w=w,
            wt=self.wt[ids].clone(),  # of a single client it would be a view of everybody's
            own=own,
            server=server,
            hyper=self.config.hyperparameters,
            K=self.steps,
            eta_0=self.config.lr,
            is_weight=self.layout.is_weight().to(w.device),
            t=t,
            eta=self.config.learning_rate(t),
        )


def resolve(config: RunConfig, root: Path | None = None) -> tuple[RunConfig, ImageData]:
    """Load the run's data (local copies under `root`), take the subset asked for, and settle the model "auto"."""
    data = load_images(config.dataset, root=root, reading=config.reading)
    _require_in_range(config, data)
    data = data.subset(config.train_samples, config.test_samples, config.seed)
    if config.augmentation != "auto":
        data = replace(data, augment=config.augmentation == "flip-crop")
    if data.augment and not data.of_images:
        raise UsageError(f"{config.dataset} has no images to flip and crop: leave augmentation = flip-crop out.")
    if config.partition_file is not None:
        data = replace(
            data,
            train=replace(data.train, owners=torch.from_numpy(read_split(Path(config.partition_file), data.train))),
        )
    if config.model == "auto":
        config = config.model_copy(update={"model": default_model(config.dataset, data.input_shape)})
    return config, data


def _require_in_range(config: RunConfig, data: ImageData) -> None:
    """Raise `UsageError` for inputs, finite as they are, that the run's dtype takes for infinite."""
    if not data.train.images.is_floating_point():
        return
    most = torch.finfo(DTYPES[config.dtype]).max
    for what, split in (("training", data.train), ("test", data.test)):
        largest = max(-split.images.amin().item(), split.images.amax().item())
        if largest > most:
            raise UsageError(
                f"{config.dataset} has {what} inputs as large as {largest:.3g}, and {config.dtype} ends at {most:.3g}: "
                "bring them to a common scale, or set dtype to float64."
            )


def make_world(config: RunConfig, root: Path | None = None) -> World:
    """Load the data, split it among the clients and build the model once to learn its layout.

    Raises `UsageError` for data, splits and models that cannot be had (see `flatlab.data`, `partition`, `models`).
    """
    config, data = resolve(config, root)
    parts = split_clients(
        data.train.labels,
        config.clients,
        rule=config.partition,
        seed=stream_seed(config.seed, "partition"),
        owners=data.train.owners,
        **{field.name: getattr(config, field.name) for field in fields(Options)},
    )
    model = initial_model(config, data)
    return World(config, data, parts, layout_of(model))


def initial_model(config: RunConfig, data: ImageData) -> nn.Module:
    """Build `config.model` for `data`, its parameters drawn from the run's stream "initialisation"."""
    with usual_settings(), seeded(config.seed, "initialisation"):
        return build_model(
            config.model,
            input_shape=data.input_shape,
            classes=data.classes,
            hidden=config.hidden,
            activation=config.activation,
        )


def typed_model(config: RunConfig, data: ImageData) -> nn.Module:
    """The same in the run's dtype, once `layout_of` has found its parameters to be real."""
    model = initial_model(config, data)
    model.to(DTYPES[config.dtype])  # a model's own method may return nothing
    return model
