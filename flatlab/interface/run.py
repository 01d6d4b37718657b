"""`flatlab.train`: a run in its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig
from flatlab.federated.execution import Execution, carry_out
from flatlab.federated.request import read_fields
from flatlab.federated.rounds import SAVE_SECONDS
from flatlab.interface.loaded import LoadedCheckpoint, load
from flatlab.measuring.probe import curvature_probe
from flatlab.runs.folder import RunFolder, default_folder
from flatlab.runs.metrics import Record
from flatlab.tell import silent
from flatlab.terminal.console import say
from flatlab.terminal.progress import bar
from flatlab.trackers.follower import read_trackers, tracked

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A finished run, as its folder holds it."""

    folder: Path
    config: RunConfig
    data_root: Path | None = None

    @property
    def records(self) -> list[Record]:
        """One record per round, as in metrics.jsonl; raises `UsageError` where that is gone."""
        metrics = RunFolder(self.folder).metrics
        if not metrics.path.exists():
            raise UsageError(f"There is no {metrics.path}: the run's folder was moved, or the file taken away.")
        return metrics.read()

    @property
    def metrics(self) -> "DataFrame":
        """One row per round, one column per number: train_loss, lr, test_accuracy, models.server.accuracy, ...

        What was not evaluated after a round is nan there.
        """
        from pandas import json_normalize

        return json_normalize(self.records).set_index("round").select_dtypes("number")

    @property
    def checkpoint(self) -> LoadedCheckpoint:
        """The last checkpoint."""
        return load(RunFolder(self.folder).final, data_root=self.data_root, model=self.config.model)

    @property
    def checkpoints(self) -> list[Path]:
        """The files of all checkpoints, by round."""
        files = RunFolder(self.folder)
        return [*files.earlier, files.final]

    def to_dict(self) -> dict[str, Any]:
        """Return configuration and records as plain data."""
        return {"folder": str(self.folder), "config": self.config.plain(), "records": self.records}

    def __repr__(self) -> str:
        last = self.checkpoint.metrics
        man = f" + MAN (zeta {self.config.zeta:g})" if self.config.man else ""
        return (
            f"{self.config.algorithm}{man} on {self.config.dataset}, {self.config.rounds} rounds in {self.folder}: "
            f"test accuracy {last['test_accuracy']:.2%}, test loss {last['test_loss']:.4f}"
        )


def train(
    *,
    out: str | Path | None = None,
    dataset: str | Path | None = None,
    clients: int | None = None,
    partition: str | None = None,
    delta: float | None = None,
    model: str | None = None,
    algorithm: str | None = None,
    hyper: dict[str, float] | None = None,
    man: bool | None = None,
    zeta: float | None = None,
    rounds: int | None = None,
    participation: float | None = None,
    lr: float | None = None,
    seed: int | None = None,
    preset: str | None = None,
    config: str | Path | None = None,
    data_root: str | Path | None = None,
    workers: int | None = None,
    engine: str = "auto",
    device: str = "auto",
    state: str = "memory",
    save_every: float = SAVE_SECONDS,
    track_eigs: int | None = None,
    keep_clients: int | Sequence[int] = (),
    superlink: str | None = None,
    patience: float | None = None,
    track: str | Sequence[str] = (),
    tensorboard: bool = False,
    progress: bool = True,
    **fields: Any,
) -> TrainedRun:
    """Train one federated run in the folder `out`, or go on with it where it was cut off; as `flatlab train`.

    Arguments from `dataset` to `seed`, and `fields`, are fields of `RunConfig`, as config.toml has them; what is None
    is taken from `preset`, a cell of the paper, and from the TOML file `config`, else from the defaults: FedAvg on the
    bundled digits. The rest say where and how, and change the result by rounding at most. A run that is finished is
    taken as it is. Ctrl-C saves the state, and the same call goes on from there. Raises `UsageError` for values that do
    not fit and for a folder that holds another run, and `FlatlabError` where training diverges.

    >>> import flatlab
    >>> run = flatlab.train(algorithm="feddyn", man=True, zeta=0.05, clients=6, rounds=2, out="runs/a", progress=False)
    >>> run.metrics["train_loss"].round(2).tolist()
    [1.14, 0.56]
    >>> run.checkpoint.round
    2
    """
    options = {
        "dataset": str(dataset) if isinstance(dataset, Path) else dataset,
        "clients": clients,
        "partition": partition,
        "delta": delta,
        "model": model,
        "algorithm": algorithm,
        "hyper": hyper,
        "man": man,
        "zeta": zeta,
        "rounds": rounds,
        "participation": participation,
        "lr": lr,
        "seed": seed,
    }
    folder = None if out is None else Path(out).absolute()
    root = None if data_root is None else Path(data_root)
    path = None if config is None else Path(config)
    asked = read_fields(path, preset, options | fields, [], resume=False, out=folder, data_root=root)
    folder = folder or default_folder(asked).absolute()
    kept = (int(keep_clients),) if isinstance(keep_clients, int | Integral) else tuple(keep_clients)
    execution = Execution(workers, engine, device, state, save_every, track_eigs, kept, superlink, patience)
    named = [track] if isinstance(track, str) else track
    trackers = read_trackers([*named, *(["tensorboard"] if tensorboard else [])])
    carry_out(
        asked,
        folder,
        execution,
        data_root=root,
        tell=say if progress else silent,
        watch=partial(bar, trackers=trackers) if progress else partial(tracked, names=trackers),
        make_probe=curvature_probe,
    )
    final = load(folder, data_root=root, model=asked.model)
    return TrainedRun(folder, final.config, root)
