"""Running a grid: what state each cell is in, training one, and many at once over joblib.

Everything is kept in the folder of results, one run per cell, and read from there again: a grid that was cut off at any
moment, on one machine or several that share the folder, goes on where it was.
"""

import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing import current_process
from pathlib import Path
from typing import Any, Literal

import joblib
import torch

from figures.saved import read_records
from flatlab.errors import SAID, FlatlabError, UsageError
from flatlab.federated.config import make_config, read_config
from flatlab.federated.engine.base import Engine
from flatlab.federated.engine.batched import BatchedEngine
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.rounds import Run, run_folder, train
from flatlab.federated.trial import tried
from flatlab.federated.world import World, make_world
from flatlab.files import write_text
from flatlab.grid.plan import Cell, Kind
from flatlab.malloc import keep_freed_memory

Backend = Literal["loky", "dask"]

Work = Callable[[Cell, Path], None]
"""Trains and measures one cell in its folder; must be importable by name, since worker processes call it."""

FAILURE = "failure.txt"
"""In the folder of a cell that failed: its reason in one sentence, then the traceback of an unexpected error."""

DIED = "The process that ran this cell died (killed, or out of memory)."


@dataclass(frozen=True)
class Progress:
    """How far a cell is, as its folder says."""

    rounds: int  # completed
    accuracy: float | None  # of the newest evaluation
    trained: bool
    missing: tuple[Kind, ...]  # still to be measured, all of `Cell.kinds` before the end of training
    failure: str  # of the newest attempt, or empty

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.trained and not self.missing


def cell_progress(cell: Cell, folder: Path) -> Progress:
    """Read how far `cell` is in its `folder`, which need not exist."""
    metrics, note = folder / "metrics.jsonl", folder / FAILURE
    records = read_records(metrics)
    accuracies = [record["test_accuracy"] for record in records if "test_accuracy" in record]
    trained = (folder / "final.pt").exists()
    return Progress(
        rounds=len(records),
        accuracy=accuracies[-1] if accuracies else None,
        trained=trained,
        missing=tuple(kind for kind in cell.kinds if not (trained and is_measured(kind, folder))),
        failure=note.read_text(errors="replace").partition("\n")[0] if note.exists() else "",
    )


def is_measured(kind: Kind, folder: Path) -> bool:
    """Whether the measurement is in `folder`."""
    if kind == "training":
        return all(path.with_suffix(".eigs.json").exists() for path in folder.glob("round-*.pt"))
    return (folder / f"final.{kind}.json").exists()


def train_cell(cell: Cell, folder: Path, data_root: Path | None, device: torch.device) -> World:
    """Train `cell` in `folder`, or go on with it, and return its world.

    Raises `UsageError` if the folder holds a run of another configuration, which is left as it is.
    """
    _refuse_another_run(cell, folder)
    world = tried(make_world(cell.config, data_root))
    run = Run(world, folder)
    run.resume()
    if run.server.round < cell.config.rounds:
        with open_engine(world, device) as engine:
            train(run, engine, lambda record: None)
    return world


def open_engine(world: World, device: torch.device) -> AbstractContextManager[Engine]:
    """On a CPU one client after the other on one thread; on a GPU all clients of a round at once."""
    return SequentialEngine(world) if device.type == "cpu" else BatchedEngine(world, device)


def run_cells(
    cells: Sequence[Cell],
    results: Path,
    work: Work,
    *,
    jobs: int,
    backend: Backend = "loky",
    scheduler: str | None = None,
) -> Iterator[tuple[Cell, str]]:
    """Do `work` for every cell, `jobs` at once, and yield each as it ends with the reason why it failed, or "".

    Where a worker process dies, every cell that was running is tried again alone, and the one that dies alone has
    failed. With "dask", the cells go to the cluster whose scheduler has the address `scheduler`, every machine of which
    must see `results` under the same path; without one, to a cluster of `jobs` processes on this machine.
    """
    waiting = {cell.name: cell for cell in cells}
    for name in waiting:
        (results / name / FAILURE).unlink(missing_ok=True)
    suspects: list[Cell] = []
    while waiting:
        batch = suspects[:1] or list(waiting.values())
        try:
            with _workers(backend, jobs, scheduler) as parallel:
                for name, failure in parallel([joblib.delayed(_attempt)(work, cell, results) for cell in batch]):
                    yield waiting.pop(name), failure
        except Exception as error:
            suspects = [cell for name, cell in waiting.items() if _failure(results / name) == DIED]
            if not suspects:
                raise FlatlabError(f"The worker processes stopped: {error}.") from error
            if len(batch) == 1:
                yield waiting.pop(batch[0].name), DIED
        suspects = [cell for cell in suspects if cell.name in waiting]


def _attempt(work: Work, cell: Cell, results: Path) -> tuple[str, str]:
    """Do `work` in a worker process; returns the cell's name and why it failed."""
    if current_process().name != "MainProcess":
        threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)
    keep_freed_memory()
    folder = results / cell.name
    note = folder / FAILURE
    try:
        with run_folder(folder):
            write_text(note, DIED + "\n")
            try:
                work(cell, folder)
            except SAID as error:
                write_text(note, f"{error}\n")
            except Exception as error:
                write_text(note, f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")
            except BaseException:  # interrupted: neither done nor failed
                note.unlink()
                raise
            else:
                note.unlink()
            return cell.name, _failure(folder)
    except (*SAID, OSError) as error:  # another process holds the folder, or it cannot be written
        return cell.name, str(error)


def _failure(folder: Path) -> str:
    note = folder / FAILURE
    return note.read_text(errors="replace").partition("\n")[0] if note.exists() else ""


@contextmanager
def _workers(backend: Backend, jobs: int, scheduler: str | None) -> Iterator[joblib.Parallel]:
    options: dict[str, Any] = {"batch_size": 1, "return_as": "generator_unordered"}
    if backend == "loky":  # with n_jobs = 1 it would work in this process; so `pre_dispatch` limits what runs at once
        with joblib.parallel_config("loky", inner_max_num_threads=1):
            yield joblib.Parallel(n_jobs=max(jobs, 2), pre_dispatch=jobs, **options)
        return
    try:
        import distributed
    except ImportError as error:
        raise UsageError("--backend dask needs Dask's cluster: pip install 'flatlab[dask]'.") from error
    local = {
        "n_workers": jobs,
        "threads_per_worker": 1,
        "processes": True,
        "dashboard_address": None,
        "silence_logs": logging.ERROR,
    }
    client: Any = distributed.Client  # without types
    with client(**({"address": scheduler} if scheduler else local)), joblib.parallel_config("dask"):
        yield joblib.Parallel(n_jobs=-1, **options)


def _die_with_parent(parent: int) -> None:
    """End this process soon after the one that started it, so that no cell goes on unseen and keeps its folder."""
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)


def _refuse_another_run(cell: Cell, folder: Path) -> None:
    path = folder / "config.toml"
    if not path.exists():
        return
    saved = make_config(read_config(path), str(path))
    for name, wanted in cell.config:
        found = getattr(saved, name)
        if found != wanted and (name, wanted) != ("model", "auto"):
            raise UsageError(
                f"{folder} holds a run with another {name} ({found}; the grid says {wanted}): "
                "move it away, or give the grid another folder with --out."
            )
