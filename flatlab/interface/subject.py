"""What the measures of Python are given, made what is measured."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from analysis.losses import Loss
from flatlab.errors import UsageError, shown
from flatlab.federated.world import DTYPES
from flatlab.interface.loaded import LoadedCheckpoint, load, warn_of
from flatlab.interface.run import TrainedRun
from flatlab.measuring.hub_models import names_hub_model, open_hub_model
from flatlab.measuring.own_model import USUAL_LOSS, taken_for_batches
from flatlab.measuring.result import Result, measured
from flatlab.measuring.subjects import Measurement, Subject, check, open_parts, open_subject
from flatlab.tell import Tell
from flatlab.terminal.progress import progress_line
from flatlab.torch_settings import usual_settings

Model = LoadedCheckpoint | TrainedRun | str | Path | nn.Module
"""What is measured; of strings, hf:NAME and timm:NAME are models of these libraries, others are paths."""

R = TypeVar("R", bound=Result)


@usual_settings()
def measure_model(
    model: Model,
    loss: Loss | str | None,
    data: Any,
    asked: Mapping[str, Any],
    work: Callable[[Subject, Tell], R],
    settings: Mapping[str, Any],
) -> R:
    """Do `work` as the command does, on what is `asked` of the model's data."""
    with progress_line(name_of(model)) as tell:
        if isinstance(model, nn.Module) or names_hub_model(model):
            return measured(own_subject(model, loss, data, asked), work, settings, tell)
        checkpoint = checkpoint_of(model, loss, data)
        measurement = checkpoint.measurement(**asked)
        check(measurement, [checkpoint.place])
        return measured(partial(open_subject, checkpoint.place, measurement), work, settings, tell)


def own_subject(model: Model, loss: Loss | str | None, data: Any, asked: Mapping[str, Any]) -> Callable[[], Subject]:
    """What opens a module, or a model of a hub; raises `UsageError` for what is missing or does not fit."""
    measurement = Measurement(**asked)
    check(measurement, [])
    if data is None:
        raise UsageError("A model of your own is measured with its loss and data: flatlab.eigs(model, loss, data).")
    warn_of(taken_for_batches(data, "these data"))
    if isinstance(model, nn.Module):
        return partial(open_parts, model, loss, data, measurement)
    hub = open_hub_model(str(model), DTYPES[measurement.dtype])
    warn_of(hub.notes)
    usual = None if hub.loss == USUAL_LOSS else hub.loss
    return partial(open_parts, hub.module, usual if loss is None else loss, data, measurement, str(model))


def checkpoint_of(model: LoadedCheckpoint | TrainedRun | str | Path, loss: object, data: object) -> LoadedCheckpoint:
    """The checkpoint that is meant; raises `UsageError` where there is none, or where it is given loss and data."""
    if not isinstance(model, TrainedRun | LoadedCheckpoint | str | Path):
        raise UsageError(
            f"What is measured is a checkpoint, a run, the path of either, or a module, not {shown(model)}."
        )
    if loss is not None or data is not None:
        raise UsageError("loss and data are for a model of your own; a checkpoint brings its own: leave them out.")
    if isinstance(model, TrainedRun):
        return model.checkpoint
    if isinstance(model, LoadedCheckpoint):
        return model
    return load(model)


def name_of(model: Model) -> str:
    """What is measured, for the line that shows progress."""
    if isinstance(model, nn.Module):
        return type(model).__name__
    return str(model.path if isinstance(model, LoadedCheckpoint) else getattr(model, "folder", model))
