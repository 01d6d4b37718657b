"""`flatlab.load`: a checkpoint with its model, its data and its loss."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from analysis.problem import Problem
from flatlab.data import ImageData
from flatlab.federated.config import RunConfig
from flatlab.functions import let_run
from flatlab.measuring.hub_models import names_hub_model, open_hub_model
from flatlab.measuring.subjects import DEFAULT_SAMPLES, Measurement, check, open_checkpoint
from flatlab.runs.checkpoint import Checkpoint, load_checkpoint, rebuild
from flatlab.torch_settings import usual_settings


@dataclass(frozen=True, eq=False)
class LoadedCheckpoint:
    """What a checkpoint file is enough for; model and data are built when they are first asked for."""

    path: Path
    content: Checkpoint = field(repr=False)  # parameters, configuration, metrics, versions
    data_root: Path | None = None  # folder of local copies of data sets
    trusted_models: tuple[str, ...] = ()  # package.module:function that may run
    _absolute: Path = field(init=False, repr=False)  # whatever becomes of the working folder

    def __post_init__(self) -> None:
        object.__setattr__(self, "_absolute", self.path.absolute())

    @property
    def place(self) -> Path:
        """Where the file is: `path`, as long as that leads there."""
        return self.path if self.path.absolute() == self._absolute else self._absolute

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.content.config

    @property
    def round(self) -> int:
        """Rounds completed."""
        return self.content.round

    @property
    def metrics(self) -> dict[str, Any]:
        """The newest evaluation of the run up to here; empty before the first."""
        return self.content.metrics

    @cached_property
    def model(self) -> nn.Module:
        """The model that the run reports, with its parameters, in the run's dtype; takes normalised images."""
        return self._rebuilt[0]

    @cached_property
    def data(self) -> ImageData:
        """The run's training and test images (bytes, not normalised) and labels, after the subset was taken."""
        return self._rebuilt[1]

    @cached_property
    @usual_settings()
    def _rebuilt(self) -> tuple[nn.Module, ImageData]:
        return rebuild(self.content, root=self.data_root, trusted_models=self.trusted_models)

    @usual_settings()
    def problem(
        self,
        samples: int | None = None,
        *,
        full: bool = False,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> Problem:
        """Return the loss as `flatlab.analysis` differentiates it: the mean cross-entropy on training samples.

        `samples` are drawn with every class in its share (None: 2,000, or all if there are fewer; `full`: all). Raises
        `UsageError` where there are not as many.
        """
        measurement = self.measurement(samples=samples, full=full, dtype=dtype, device=device)
        check(measurement, [self.place])
        return open_checkpoint(self.place, measurement).problem

    def measurement(self, **asked: Any) -> Measurement:
        """How this checkpoint is measured: what is `asked`, on its own data and model."""
        return Measurement(data_root=self.data_root, trusted_models=self.trusted_models, most=DEFAULT_SAMPLES, **asked)


@usual_settings()
def load(
    path: str | Path, *, data_root: str | Path | None = None, model: str | None = None, dataset: str | None = None
) -> LoadedCheckpoint | Any:
    """Open a checkpoint of `flatlab.train` or `flatlab train`, or the last one in a run's folder.

    For "hf:NAME" and "timm:NAME" (or "hf:./folder") it is the `torch.nn.Module` of Hugging Face transformers or timm,
    with its weights in float32: `flatlab.eigs(flatlab.load("hf:gpt2"), "next_token", data)`.

    The file is read as tensors and plain data, never as code. Where its model or its data set is a function of yours,
    `model="package.module:function"` or `dataset=` lets that run. `data_root` names the folder of local copies of data
    sets. Raises `UsageError` for a file that is missing, damaged, or no checkpoint.

    >>> import flatlab
    >>> ckpt = flatlab.load("runs/a/final.pt")
    >>> ckpt.config.algorithm, ckpt.round, len(ckpt.data.train)
    ('feddyn', 2, 1438)
    >>> sum(parameter.numel() for parameter in ckpt.model.parameters())
    6570
    >>> ckpt.problem(samples=100).samples
    100
    """
    if names_hub_model(path):
        hub = open_hub_model(str(path))
        warn_of(hub.notes)
        return hub.module
    let_run(dataset)
    path = Path(path)
    file = path / "final.pt" if path.is_dir() else path
    root = None if data_root is None else Path(data_root)
    return LoadedCheckpoint(file, load_checkpoint(file), root, () if model is None else (model,))


def warn_of(notes: Sequence[str]) -> None:
    """Say what there is to say of a model, as warnings."""
    for note in notes:
        warnings.warn(note, stacklevel=3)
