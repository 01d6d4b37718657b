"""A grid reproduced: what it describes, what of it is done, how long the rest takes, and doing it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import tomli_w
import torch

from flatlab.cores import available_cores
from flatlab.data import ImageData, is_local
from flatlab.errors import SAID, UsageError
from flatlab.federated.config import RunConfig
from flatlab.federated.config_file import parse_toml
from flatlab.federated.footprint import Footprint, footprint
from flatlab.federated.own_algorithm import hyper_of
from flatlab.federated.request import HYPERPARAMETERS, merged_fields, read_settings
from flatlab.federated.trial import own_code_of
from flatlab.federated.world import resolve
from flatlab.files import write_text
from flatlab.functions import let_run
from flatlab.grid.carry import run_cells
from flatlab.grid.cell_progress import Progress, State, cell_progress
from flatlab.grid.cells import CellWork
from flatlab.grid.estimate import calibrate, measuring_seconds, training_seconds
from flatlab.grid.finished import finished
from flatlab.grid.idle import require_effects
from flatlab.grid.plan import Cell, Grid, grid_cells, parse_grid, read_grid_text, require_named_code
from flatlab.grid.shards import WHOLE, Shard
from flatlab.grid.workers import dealt, visible_gpus
from flatlab.measuring.subjects import usual_device
from flatlab.runs.fingerprint import data_digest, data_source, settled
from flatlab.runs.folder import RunFolder
from flatlab.tell import Tell, silent


@dataclass(frozen=True)
class Where:
    """Where and how a grid is run; none of it changes a result."""

    out: Path | None = None
    jobs: int | None = None
    backend: str = "loky"
    scheduler: str | None = None
    device: str = "auto"
    data_root: Path | None = None
    trusted_model: str | None = None
    trusted_dataset: str | None = None
    trusted_algorithms: tuple[str, ...] = ()
    jobs_per_gpu: int | None = None
    track: tuple[str, ...] = ()  # trackers that follow every cell
    shard: Shard = WHOLE  # of the cells; others are left to other calls


@dataclass(frozen=True)
class Cost:
    """About what is left to do, if the machine has nothing else to do."""

    cells: Mapping[str, float]  # seconds of each cell that is not done, by name
    seconds: float  # of all, as many at once as the reproduction has jobs
    largest: Footprint | None  # of the cell that holds most; None where nothing is left


@dataclass(frozen=True)
class Reproduction:
    """A grid, where its results lie, and the means to run it."""

    grid: Grid
    text: str  # the grid's TOML
    cells: tuple[Cell, ...]
    results: Path
    jobs: int
    gpus: tuple[str, ...]  # of each of the jobs, where they are pinned to GPUs of this machine
    device: str  # "auto" on a cluster: what each of its machines has
    where: Where
    chosen: tuple[Cell, ...]  # the cells of this call: those of `--only` and `--shard`

    def progress(self) -> dict[str, Progress]:
        """How far every cell is, by name."""
        return {cell.name: self.progress_of(cell) for cell in self.cells}

    def progress_of(self, cell: Cell) -> Progress:
        """How far `cell` is; one with a file that cannot be read has failed, and does not stop the others."""
        folder = self.results / cell.name
        try:
            data = _data_of(cell.config, self.where.data_root) if finished(cell.config, folder) else ""
            return cell_progress(cell, folder, data)
        except (*SAID, OSError) as error:
            return Progress(0, None, False, cell.kinds, str(error))

    def todo(self, progress: Mapping[str, Progress]) -> list[Cell]:
        """The cells that are not done, but for those whose folder holds another run, which nobody touches."""
        return [cell for cell in self.chosen if not (progress[cell.name].done or progress[cell.name].another)]

    def states(self, progress: Mapping[str, Progress]) -> dict[str, State]:
        """Every cell in a word, by name."""
        return {name: each.state(self._is_busy(name)) for name, each in progress.items()}

    def is_over(self, progress: Mapping[str, Progress]) -> bool:
        """Whether the whole grid is at its end, in this call and in all others."""
        return all(each.done or each.failure for each in progress.values())

    def _is_busy(self, name: str) -> bool:
        return RunFolder(self.results / name).is_busy()

    def cost(self, progress: Mapping[str, Progress]) -> Cost:
        """Estimate what is left, from a short calibration on this machine."""
        todo = self.todo(progress)
        if not todo:
            return Cost({}, 0.0, None)
        speeds = calibrate([cell.config for cell in todo], usual_device(self.device), self.where.data_root)
        seconds = {}
        for cell in todo:
            rounds = cell.config.rounds - progress[cell.name].rounds
            measuring = measuring_seconds(cell.config, progress[cell.name].missing, self.grid.measure, speeds)
            seconds[cell.name] = training_seconds(cell.config, rounds, speeds) + measuring
        largest = max((footprint(cell.config, speeds.parameters) for cell in todo), key=lambda each: each.bytes)
        return Cost(seconds, sum(seconds.values()) / self.jobs, largest)

    def begin(self) -> None:
        """Keep the grid with its results, which tables and report are made from.

        Raises `UsageError` where code of the user's, a model or an algorithm, has changed since a cell was trained.
        """
        for cell in self.cells:  # of other calls too: they will stand in one table
            try:
                final = finished(cell.config, self.results / cell.name)
                data = _data_of(cell.config, self.where.data_root) if final and final.own_code else ""
            except (*SAID, OSError):  # it has failed, which its progress says
                continue
            if final is not None and data:
                now = own_code_of(cell.config, _loaded(_fields(cell.config), self.where.data_root))
                RunFolder(self.results / cell.name).require_code(cell.config, final.own_code, now)
        write_text(self.results / "grid.toml", self.text)

    def run(self, todo: Sequence[Cell], tell: Tell = silent) -> Iterator[tuple[Cell, str]]:
        """Train and measure `todo`; yields each cell as it ends with the reason why it failed, or "".

        Raises `KeyboardInterrupt` after Ctrl-C or SIGTERM, once every cell at work has saved its state.
        """
        trusted = (self.where.trusted_dataset, *self.where.trusted_algorithms)
        root = self.where.data_root and self.where.data_root.absolute()  # a cluster's workers are elsewhere at home
        work = CellWork(root, self.device, self.where.trusted_model, trusted, self.where.track)
        yield from run_cells(
            todo,
            self.results.absolute(),
            work,
            jobs=self.jobs,
            backend="dask" if self.where.backend == "dask" else "loky",
            scheduler=self.where.scheduler,
            gpus=self.gpus,
            tell=tell,
        )


def _data_of(config: RunConfig, root: Path | None) -> str:
    """The digest of a cell's data; empty where they are not in a folder here, as for results that were brought here."""
    return _digest(_fields(config), root)


def _fields(config: RunConfig) -> tuple[tuple[str, Any], ...]:
    return (*data_source(config), ("partition", config.partition))


@cache
def _digest(fields: tuple[tuple[str, Any], ...], root: Path | None) -> str:
    try:
        return data_digest(_loaded(fields, root)) if is_local(dict(fields)["dataset"], root) else ""
    except UsageError:
        return ""


@lru_cache(maxsize=1)  # the cells of a grid share their data, or are in the order of those that do
def _loaded(fields: tuple[tuple[str, Any], ...], root: Path | None) -> ImageData:
    known = {name: value for name, value in fields if value is not None}
    return resolve(RunConfig.model_validate({**known, "model": "mlp"}), root)[1]


def read_reproduction(name: str, where: Where, only: Sequence[str] = (), settings: Sequence[str] = ()) -> Reproduction:
    """Read the shipped grid, or the TOML file, `name`, with `settings` (FIELD=VALUE) over its [common].

    Of its cells those whose names fit one of the patterns `only` are run, or all. Raises `UsageError`.
    """
    if where.backend not in ("loky", "dask"):
        raise UsageError(
            f"--backend is loky or dask, not {where.backend!r}; on a cluster, dask carries the grid to every machine."
        )
    if where.scheduler and where.backend != "dask":
        raise UsageError("--scheduler is the address of a Dask scheduler; add --backend dask.")
    if where.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device is auto, cpu or cuda, not {where.device!r}.")
    device, gpus = _devices(where)
    let_run(where.trusted_dataset, *where.trusted_algorithms)
    text = _with_settings(read_grid_text(name), name, settings, where.trusted_algorithms)
    grid = parse_grid(text, name)
    require_named_code(grid, where.trusted_model, where.trusted_dataset, where.trusted_algorithms, name)
    jobs = len(gpus) or where.jobs or available_cores()
    results = where.out or Path("checkpoints") / Path(name).stem
    cells = tuple(replace(cell, config=settled(cell.config, where.data_root)) for cell in grid_cells(grid))
    require_effects(grid, cells, name)
    for pattern in only:
        if not any(fnmatchcase(cell.name, pattern) for cell in cells):
            some = ", ".join(cell.name for cell in cells[:3])
            raise UsageError(f"--only {pattern} is no cell of the grid; they are {some}, ...")
    chosen = [cell for cell in cells if not only or any(fnmatchcase(cell.name, pattern) for pattern in only)]
    return Reproduction(grid, text, cells, results, jobs, gpus, device, where, where.shard.cells(chosen))


def _devices(where: Where) -> tuple[str, tuple[str, ...]]:
    """The device of the cells, and the GPU of each job where they are on GPUs of this machine; raises `UsageError`."""
    if where.jobs and where.jobs_per_gpu:
        raise UsageError("--jobs is of all jobs and --jobs-per-gpu of those on one GPU: give one of them.")
    if where.scheduler:
        for option, jobs in {"jobs-per-gpu": where.jobs_per_gpu, "jobs": where.jobs}.items():
            if jobs:
                raise UsageError(f"--{option} is for this machine; a cluster has as many jobs as Dask workers.")
        return where.device, ()
    count = torch.cuda.device_count() if where.device != "cpu" and torch.cuda.is_available() else 0
    if where.device == "cuda" and not count:
        raise UsageError("There is no CUDA device here; leave --device out to use the CPU.")
    if where.jobs_per_gpu and not count:
        raise UsageError("--jobs-per-gpu needs a GPU, and none is used here: leave it out, or say --jobs.")
    gpus = visible_gpus(os.environ, count)
    jobs = where.jobs or count * (where.jobs_per_gpu or 1)
    return ("cuda", dealt(gpus, jobs)) if gpus else ("cpu", ())


def _with_settings(text: str, name: str, settings: Sequence[str], algorithms: Sequence[str]) -> str:
    """The grid's TOML with fields of every cell set anew; as it is written where there are none.

    Hyperparameters are those of flatlab's algorithms and of the user's own `algorithms`; also an algorithm to which the
    grid gives others has them.
    """
    if not settings:
        return text
    plain = parse_toml(text, f"The grid {name}")
    common, own = plain.get("common", {}), plain.get("hyper", {})
    if not all(isinstance(part, dict) for part in (common, own, *(own.values() if isinstance(own, dict) else ()))):
        return text  # which validation names
    hyper = HYPERPARAMETERS.union(*(own.model_fields for own in map(hyper_of, algorithms) if own))
    asked = read_settings(settings, hyper)
    for values in own.values():  # of one algorithm, which win over those of all
        values.update((name, value) for name, value in asked.get("hyper", {}).items() if name in values)
    return tomli_w.dumps({**plain, "common": merged_fields(common, asked)})
