"""Checkpoints: one `.pt` file that is enough to rebuild model, loss and data, and that is never unpickled as code."""

import pickle
import platform
import subprocess
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from flatlab.data import ImageData
from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig, make_config
from flatlab.federated.models import MODELS
from flatlab.federated.own_code import MODEL, model_numbers, require_same_code
from flatlab.federated.world import resolve, typed_model
from flatlab.files import atomic_write
from flatlab.runs.contents import (
    require_finite,
    require_keys,
    require_numbers,
    require_plain,
    require_round,
    require_state,
    require_text,
    require_version,
)
from flatlab.runs.fingerprint import Fingerprint, data_digest, fingerprint, owners_source, weights_digest
from flatlab.runs.saved import check_record
from flatlab.version import __version__

FORMAT = "flatlab checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    config: RunConfig
    round: int  # rounds completed
    state_dict: dict[str, Tensor]  # of the model that the run reports (RunConfig.report)
    models: dict[str, dict[str, Tensor]]  # the round's others: "server", "selected", "all", the algorithm's
    metrics: dict[str, Any]  # the line of metrics.jsonl on its round; empty where that one was not evaluated
    provenance: dict[str, str]  # versions, commit, platform
    data: str = ""  # digest of the data it was trained on; empty in files from before it was kept
    clients: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # the round's own models by number, where kept
    own_code: dict[str, list[float]] = field(default_factory=dict)  # what a user's own model and algorithm compute

    @property
    def fingerprint(self) -> Fingerprint:
        """Which run it is of, and of which parameters."""
        return replace(fingerprint(self.config, self.data), weights=weights_digest(self.state_dict))


@dataclass(frozen=True)
class Head(Checkpoint):
    """A checkpoint without its tensors."""

    weights: str = ""  # their digest; empty where they are not here

    @property
    def fingerprint(self) -> Fingerprint:
        """Which run it is of, and of which parameters."""
        return replace(fingerprint(self.config, self.data), weights=self.weights)


def head_of(checkpoint: Checkpoint) -> Head:
    """What there is to know of it beside its tensors."""
    known = {**vars(checkpoint), "state_dict": {}, "models": {}, "clients": {}}
    return Head(**known, weights=checkpoint.fingerprint.weights)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`, atomically."""
    plain = {
        **vars(checkpoint),
        "config": checkpoint.config.plain(),
        "fingerprint": checkpoint.fingerprint.plain(),
        "format": FORMAT,
        "version": VERSION,
    }
    with atomic_write(path) as file:
        torch.save(plain, file)


def load_checkpoint(path: Path, *, mapped: bool = False) -> Checkpoint:
    """Read a checkpoint; tensors and plain data only, no code.

    `mapped` leaves the tensors in the file until their numbers are read. Raises `UsageError` for a file that is
    missing, truncated, not one of flatlab's, of a newer format, or that would run code when unpickled.
    """
    plain = read_plain(path, FORMAT, VERSION, mapped=mapped)
    config = make_config(require_keys(plain, ("config",), path)["config"], f"the checkpoint {path}")
    require_keys(plain, ("round", "state_dict", "models", "metrics", "provenance"), path)
    for name in ("metrics", "provenance"):
        require_plain(require_keys(plain[name], (), path, name), path, name)
    models = require_keys(plain["models"], (), path, "models")
    check_record(plain["metrics"], f"{path}, metrics", part=True)
    round_ = require_round(plain["round"], config.rounds, path)
    scored = plain["metrics"].get("round", round_)  # of earlier versions it may be a round before
    return Checkpoint(
        config=config,
        round=round_,
        state_dict=require_state(plain["state_dict"], path, "state_dict"),
        models={name: require_state(model, path, f"models.{name}") for name, model in models.items()},
        metrics=plain["metrics"] if scored == round_ else {},
        provenance=plain["provenance"],
        data=require_text(plain.get("data", ""), path, "data"),
        clients={
            name: require_state(model, path, f"clients.{name}")
            for name, model in require_keys(plain.get("clients", {}), (), path, "clients").items()
        },
        own_code=require_numbers(plain.get("own_code", {}), path, "own_code"),
    )


def read_plain(path: Path, kind: str, newest: int, *, mapped: bool = False) -> dict[str, Any]:
    """Read a dictionary of tensors and plain data that says it is of `kind`, version `newest` or older.

    Raises `UsageError` as `load_checkpoint`.
    """
    plain = load_tensors(path, f"a {kind}", "Use a file that `flatlab train` wrote.", mapped=mapped)
    if not isinstance(plain, dict) or plain.get("format") != kind:
        raise UsageError(f"{path} is a PyTorch file, but not a {kind}; use a file that `flatlab train` wrote.")
    require_version(plain, path, newest)
    return plain


def load_tensors(path: Path, kind: str, advice: str, *, mapped: bool = False) -> Any:
    """Read what `torch.save` wrote: tensors and plain data only, no code.

    Raises `UsageError`, which says that the file is not `kind` and ends with `advice`, for a file that is missing,
    truncated, or that would run code when unpickled.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles that are then refused anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.") from error
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.") from error
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} is not {kind}, or it would run code when opened; nothing in it was run. {advice}"
        ) from error
    except Exception as error:  # whatever a file that anybody may have made brings torch to raise
        raise UsageError(f"{path} is truncated or not {kind}. {advice}") from error


def rebuild(
    checkpoint: Checkpoint, *, root: Path | None = None, trusted_models: tuple[str, ...] = ()
) -> tuple[nn.Module, ImageData]:
    """Build the checkpoint's model, with its parameters, and load its data; the loss is the mean cross-entropy.

    The model's own code runs only if it is flatlab's or `trusted_models` name the same `package.module:function`:
    a checkpoint from elsewhere must not choose what is imported. Raises `UsageError` where the parts do not fit, or the
    data or the user's own model have changed since the training.
    """
    named = checkpoint.config.model
    if named not in (*MODELS, "auto", *trusted_models):
        raise UsageError(f"This checkpoint's model is the function {named}; to let it run, add --model {named}.")
    config, data = resolve(checkpoint.config, root)
    if checkpoint.data and data_digest(data) != checkpoint.data:
        owners = owners_source(config)
        raise UsageError(
            f"The data set {config.dataset} is not the one on which this checkpoint was trained: its images or labels"
            f"{owners and f', or the {owners},'} have changed. Bring them back, or name the folder that holds "
            "them with --data-root."
        )
    model = typed_model(config, data)
    state = versioned(checkpoint.state_dict, getattr(model.state_dict(), "_metadata", {}))
    fill(model, state, f"The checkpoint's parameters do not fit its model {config.model}")
    if MODEL in checkpoint.own_code:
        now = {MODEL: model_numbers(config, data)}
        require_same_code(config, checkpoint.own_code, now, "this checkpoint was trained")
    require_finite(model, "The checkpoint")
    return model, data


def fill(model: nn.Module, state_dict: Mapping[str, Tensor], complaint: str) -> None:
    """Load the parameters into the model; raises `UsageError`, "`complaint`: reason", where they do not fit."""
    try:
        model.load_state_dict(state_dict)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = lines[min(1, len(lines) - 1)].replace("Unexpected key(s) in state_dict", "names that it does not have")
        raise UsageError(f"{complaint}: {reason}") from error


def versioned(state_dict: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The state with the versions of the modules that wrote it, by which they translate an older one's as they load.

    `metadata` is what torch keeps beside a state_dict; without it modules take their state for the oldest.
    """
    state: OrderedDict[str, Any] = OrderedDict(state_dict)
    state._metadata = metadata  # type: ignore[attr-defined]
    return state


def provenance() -> dict[str, str]:
    """Return the versions that made a number: flatlab, its commit where known, Python, PyTorch, NumPy, platform."""
    return {
        "flatlab": __version__,
        "torch": str(torch.__version__),  # of a class of its own, which no checkpoint may hold
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


@cache  # what was read into this process stays as it is, whatever becomes of the files: asked for as a run begins
def _commit() -> str:
    """The commit of the source tree that runs, "+" if it was changed since, or "unknown" where there is none.

    An installed package may lie inside a repository of something else, which does not track it.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changes else "")
