"""Many cells at once, over joblib; the grid can be stopped, or cut off, at any moment.

Everything is kept in the folder of results, one run per cell, and read from there again: a grid that was cut off, on
one machine or several that share the folder, goes on where it was. What another process has in work is waited for.
"""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import joblib
import torch

from flatlab.errors import SAID, FlatlabError
from flatlab.files import WriteError, write_text
from flatlab.grid.cell_progress import DIED, FAILURE, another_run, read_failure
from flatlab.grid.plan import Cell
from flatlab.grid.stop import Stop
from flatlab.grid.workers import Backend, workers
from flatlab.malloc import keep_freed_memory
from flatlab.runs.folder import RunFolder
from flatlab.runs.lock import BusyError

Work = Callable[[Cell, Path], None]
"""Trains and measures one cell in its folder; must be importable by name, since worker processes call it."""

STOPPED = "The process that ran this cell was told to stop; what was done is saved."

BUSY = "Another process is at work on this cell."

WAIT_SECONDS = 1.0
"""Between two looks at the cells that other processes have in work."""


def run_cells(
    cells: Sequence[Cell],
    results: Path,
    work: Work,
    *,
    jobs: int,
    backend: Backend = "loky",
    scheduler: str | None = None,
    gpus: Sequence[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[Cell, str]]:
    """Do `work` for every cell, `jobs` at once, and yield each as it ends with the reason why it failed, or "".

    Where a worker process dies, every cell that was running is tried again alone, and the one that dies alone has
    failed. A cell that another process has in work is tried again once that is over; `tell` gets a line about it. With
    "dask", the cells go to the cluster whose scheduler has the address `scheduler`, every machine of which must see
    `results` under the same path; without one, to a cluster of `jobs` processes on this machine. Where `gpus` are
    named there is one process for each instead, which sees this GPU alone. Raises `KeyboardInterrupt` after Ctrl-C or
    SIGTERM, once every cell at work has saved its state.
    """
    waiting = {cell.name: cell for cell in cells}
    _forget_failures([results / name for name in waiting])
    stop = Stop(results)
    suspects: list[Cell] = []
    with stop.asked_by_signals():
        while waiting and not stop.asked():
            batch = suspects[:1] or list(waiting.values())
            busy = []
            try:
                with workers(backend, jobs, scheduler, gpus) as parallel:
                    for name, failure in parallel(
                        [joblib.delayed(_attempt)(work, cell, results, stop) for cell in batch]
                    ):
                        if failure == BUSY:
                            busy.append(name)
                        elif failure != STOPPED or not stop.asked():
                            yield waiting.pop(name), failure
            except Exception as error:
                if stop.asked():
                    break
                suspects = [cell for name, cell in waiting.items() if _died(results / name)]
                if not suspects:
                    raise FlatlabError(f"The worker processes stopped: {error}.") from error
                if len(batch) == 1:
                    yield waiting.pop(batch[0].name), DIED
            suspects = [cell for cell in suspects if cell.name in waiting and cell.name not in busy]
            if busy and len(busy) == len(waiting):
                tell(f"Another process is at work on {_listed(busy)}: waiting for it.")
                _await_any([RunFolder(results / name) for name in busy], stop)
        stopped = stop.asked()
    if stopped:
        raise stop.interruption()


def _attempt(work: Work, cell: Cell, results: Path, stop: Stop) -> tuple[str, str]:
    """Do `work` in a worker process; returns the cell's name and why it failed, is busy, or stopped."""
    torch.set_num_threads(1)
    keep_freed_memory()
    folder = results / cell.name
    try:
        with stop.heeded():
            another = another_run(cell, folder)
            if another:
                return cell.name, another
            with RunFolder(folder).locked():
                return cell.name, _do(work, cell, folder)
    except KeyboardInterrupt:
        return cell.name, STOPPED
    except BusyError:
        return cell.name, BUSY
    except (*SAID, OSError) as error:
        return cell.name, str(error)


def _do(work: Work, cell: Cell, folder: Path) -> str:
    """Do `work` in the folder, which is held; returns why it failed, and leaves the reason there."""
    note = folder / FAILURE
    write_text(note, DIED + "\n")
    try:
        work(cell, folder)
    except SAID as error:
        return _left(note, f"{error}\n")
    except Exception as error:
        return _left(note, f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")
    except BaseException:  # interrupted: neither done nor failed
        note.unlink(missing_ok=True)
        raise
    note.unlink(missing_ok=True)
    return ""


def _left(note: Path, reason: str) -> str:
    """Leave the reason in the cell's folder, if there is room for it; returns it as it is told."""
    try:
        write_text(note, reason)
    except WriteError:
        note.unlink(missing_ok=True)  # it would say that the process died
        return reason.partition("\n")[0]
    return read_failure(note.parent)


def _forget_failures(folders: Sequence[Path]) -> None:
    """Remove the notes of earlier failures, but for cells that another process has in work: the note is its own."""
    for folder in folders:
        if (folder / FAILURE).exists():
            try:
                with RunFolder(folder).locked():
                    (folder / FAILURE).unlink(missing_ok=True)
            except (BusyError, WriteError, OSError):  # another's, or one that this user cannot write: it says so itself
                continue


def _died(folder: Path) -> bool:
    """Whether the process that had the cell in work is gone, and did not come to its end."""
    return read_failure(folder) == DIED


def _await_any(folders: Sequence[RunFolder], stop: Stop) -> None:
    """Wait until one of the folders is free, or the grid is to stop."""
    while all(folder.is_busy() for folder in folders) and not stop.asked():
        time.sleep(WAIT_SECONDS)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
