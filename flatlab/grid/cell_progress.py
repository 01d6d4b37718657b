"""How far each cell of a grid is, as its folder says, and whether what lies there is what the grid now describes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flatlab.errors import UsageError
from flatlab.grid.finished import finished, require_last_evaluation
from flatlab.grid.plan import Cell, Kind, Measure
from flatlab.measuring.density import Quadrature
from flatlab.measuring.eigs import Search
from flatlab.measuring.flatness import flatness_settings, read_ascent
from flatlab.measuring.local_global import local_settings
from flatlab.measuring.surface import Section
from flatlab.measuring.trace import Probing
from flatlab.runs.checkpoint import Head
from flatlab.runs.folder import RunFolder, read_head
from flatlab.runs.measurements import is_current, measurement_path
from flatlab.runs.saved import read_measurement

FAILURE = "failure.txt"
"""In the folder of a cell that failed: its reason in one sentence, then the traceback of an unexpected error."""

DIED = "The process that ran this cell died (killed, or out of memory)."
"""Written as the work on a cell begins, and taken away as it ends."""

DTYPE = "float32"
"""Precision of a grid's measurements."""


ASCENT = read_ascent("linf")
"""How the worst case is sought."""

State = Literal["done", "running", "failed", "another-run", "to-measure", "begun", "not-begun"]
"""What `flatlab reproduce --list-cells` calls a cell."""

_ADVICE = "move it away, or give the grid another folder with --out"


@dataclass(frozen=True)
class Progress:
    """How far a cell is, as its folder says."""

    rounds: int  # completed
    accuracy: float | None  # of the newest evaluation
    trained: bool
    missing: tuple[Kind, ...]  # still to be measured, all of `Cell.kinds` before the end of training
    failure: str  # of the newest attempt, or empty
    another: str = ""  # where the folder holds another run: which, and what to do

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.trained and not self.missing

    def state(self, busy: bool) -> State:
        """The cell in a word, where a process holds its folder (`busy`) or none does."""
        if busy or self.done or self.another:
            return "running" if busy else "done" if self.done else "another-run"
        if self.failure:
            return "failed"
        return "to-measure" if self.trained else "begun" if self.rounds else "not-begun"


def cell_progress(cell: Cell, folder: Path, data: str = "") -> Progress:
    """Read how far `cell` is in its `folder`, which need not exist; `data` is the digest of its data, where known.

    Raises `UsageError` for a file that cannot be read, or is not of the run that is finished there.
    """
    another = another_run(cell, folder) or _of_other_data(cell, folder, data)
    if another:
        return Progress(0, None, False, cell.kinds, another, another)
    final = finished(cell.config, folder)
    records = RunFolder(folder).metrics.read()
    accuracies = [record["test_accuracy"] for record in records if "test_accuracy" in record]
    missing = tuple(kind for kind in cell.kinds if not (final and is_measured(kind, cell, final, folder)))
    if final is not None and lacks_weights(cell, final, folder):  # it is trained again
        return Progress(0, None, False, cell.kinds, read_failure(folder))
    if final is not None:
        require_last_evaluation(final, records, folder)
    return Progress(
        rounds=len(records),
        accuracy=accuracies[-1] if accuracies else None,
        trained=final is not None,
        missing=missing,
        failure=read_failure(folder),
    )


def another_run(cell: Cell, folder: Path) -> str:
    """Say which other run is in the folder of `cell`; empty where there is none."""
    return RunFolder(folder).refusal(cell.config, "the grid says", _ADVICE)


def _of_other_data(cell: Cell, folder: Path, data: str) -> str:
    final = finished(cell.config, folder)
    if final is None or not final.data or not data or final.data == data:
        return ""
    return f"{folder} holds a run on other images or labels than {cell.config.dataset} now has: {_ADVICE}."


def read_failure(folder: Path) -> str:
    """The reason of the newest failure, or empty; a cell that is at work has none, though it notes that it may die."""
    note = folder / FAILURE
    reason = note.read_text(encoding="utf-8", errors="replace").partition("\n")[0] if note.exists() else ""
    return "" if reason == DIED and RunFolder(folder).is_busy() else reason


def is_measured(kind: Kind, cell: Cell, final: Head, folder: Path) -> bool:
    """Whether the measurement is in `folder`, of this run and made as the grid now says."""
    return not unmeasured(kind, cell, final, folder)


def unmeasured(kind: Kind, cell: Cell, final: Head, folder: Path) -> list[Path]:
    """The checkpoints of which `kind` is still to be measured, by round; they may not be here."""
    run = RunFolder(folder)
    if kind == "training":
        paths = run.earlier
    elif kind == "local":
        paths = [run.kept_clients(round_) for round_ in cell.measure.keep_clients]
    else:
        paths = [run.final]
    measured_as = "eigs" if kind == "training" else kind
    return [path for path in paths if not _has(measured_as, path, cell.measure, final, run)]


def lacks_weights(cell: Cell, final: Head, folder: Path) -> bool:
    """Whether weights that are not here are still to be measured: left out, or those of clients asked for since."""
    return any(not path.exists() for kind in cell.kinds for path in unmeasured(kind, cell, final, folder))


def settings_of_kind(kind: str, measure: Measure) -> dict[str, Any]:
    """How the grid has `kind` measured, as the measurement's file says it."""
    own: Mapping[str, dict[str, Any]] = {
        "eigs": Search().settings,
        "trace": vars(probing(measure)),
        "density": vars(quadrature(measure)),
        "surface": vars(section(measure)),
        "flatness": flatness_settings(probing(measure), ASCENT),
        "local": local_settings(Search(), probing(measure), measure.local_clients),
    }
    return {"samples": measure.samples, "dtype": DTYPE, **own[kind]} if kind in own else {}


def probing(measure: Measure) -> Probing:
    """How the trace is probed."""
    return Probing(measure.trace_tol)


def quadrature(measure: Measure) -> Quadrature:
    """How the density is estimated."""
    return Quadrature(measure.density_depth, measure.density_probes)


def section(measure: Measure) -> Section:
    """Where the loss surface is looked at."""
    return Section(points=measure.surface_points)


def _has(kind: str, checkpoint: Path, measure: Measure, final: Head, run: RunFolder) -> bool:
    path = measurement_path(checkpoint, kind)
    if not path.exists():
        return False
    if checkpoint == run.final:
        of = final.fingerprint
    else:
        of = read_head(checkpoint).fingerprint if checkpoint.exists() else replace(final.fingerprint, weights="")
    return is_current(path, settings_of_kind(kind, measure), of) and _can_be_read(path, kind)


def _can_be_read(path: Path, kind: str) -> bool:
    """Whether tables and figures can use it, so that what they refuse is measured again."""
    try:
        read_measurement(path, kind)
    except UsageError:
        return False
    return True
