"""What is done for one cell of a grid: train it, then measure its checkpoints. Runs in worker processes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flatlab.errors import UsageError
from flatlab.federated.execution import Execution, go_on
from flatlab.federated.partition import class_counts
from flatlab.federated.rounds import Run
from flatlab.federated.trial import tried
from flatlab.federated.world import World, make_world
from flatlab.functions import let_run
from flatlab.grid.cell_progress import (
    ASCENT,
    DTYPE,
    is_measured,
    lacks_weights,
    probing,
    quadrature,
    section,
    settings_of_kind,
    unmeasured,
)
from flatlab.grid.finished import require_last_evaluation
from flatlab.grid.plan import Cell, Kind, Measure
from flatlab.measuring.density import measure_density
from flatlab.measuring.eigs import Search, measure_eigs
from flatlab.measuring.flatness import measure_flatness
from flatlab.measuring.local_global import measure_local_global
from flatlab.measuring.result import Result, measured
from flatlab.measuring.subjects import Measurement, Subject, open_subject, usual_device
from flatlab.measuring.surface import measure_surface
from flatlab.measuring.trace import measure_trace
from flatlab.runs.checkpoint import Head, provenance
from flatlab.runs.folder import RunFolder
from flatlab.runs.lines import Lines
from flatlab.runs.measurements import save_measurement
from flatlab.runs.metrics import Record
from flatlab.trackers.follower import Log, followed, tracked
from flatlab.trackers.numbers import of_measurement


@dataclass(frozen=True)
class CellWork:
    """The work on a cell: a function that can be sent to other processes with what it needs."""

    data_root: Path | None
    device: str  # auto: a GPU where the process sees one
    trusted_model: str | None = None  # package.module:function that may run, named on the command line
    trusted: tuple[str | None, ...] = ()  # the same of the data set and of algorithms
    track: tuple[str, ...] = ()  # trackers of the cells

    def __call__(self, cell: Cell, folder: Path) -> None:
        """Train and measure what `folder` lacks; each measurement is written as soon as it is made.

        Raises `FlatlabError` where a run cannot go on, or what lies there is not all of one.
        """
        let_run(*self.trusted)
        device = usual_device(self.device)
        files = RunFolder(folder)
        final = files.finished(cell.config)
        if final is None or lacks_weights(cell, final, folder):
            train_cell(cell, folder, self.data_root, device, self.track)
            final = files.finished(cell.config)
        assert final is not None  # or training would have raised
        require_last_evaluation(final, files.metrics.read(), folder)
        missing = [kind for kind in cell.kinds if not is_measured(kind, cell, final, folder)]
        trackers = self.track if missing else ()
        with followed(trackers, folder, cell.config.plain(), final.round, files.log) as log:
            for kind in missing:
                self._measure_cell(kind, cell, files, final, log)
                files.log(f"measured: {kind}")

    def _measure_cell(self, kind: Kind, cell: Cell, files: RunFolder, final: Head, log: Log) -> None:
        if kind in ("training", "local"):
            for path in unmeasured(kind, cell, final, files.path):
                self._measure("eigs" if kind == "training" else kind, path, cell.measure)
        elif kind == "split":
            self._save("split", files.final, split_counts(make_world(cell.config, self.data_root), final))
        else:
            content = self._measure(kind, files.final, cell.measure)
            log(of_measurement(kind, content), final.round)

    def _measure(self, kind: str, path: Path, measure: Measure) -> dict[str, Any]:
        models = () if self.trusted_model is None else (self.trusted_model,)
        asked = Measurement(measure.samples, DTYPE, usual_device(self.device), self.data_root, models)
        measurement = replace(asked, kept=kind == "local")
        result = measured(
            lambda: open_subject(path, measurement),
            lambda subject, tell: MEASURES[kind](subject, measure),
            settings_of_kind(kind, measure),
        )
        content = result.to_dict()
        self._save(kind, path, content)
        return content

    def _save(self, kind: str, path: Path, content: Mapping[str, Any]) -> None:
        saved = save_measurement(path, kind, content, for_tables=True)
        if saved.note:
            RunFolder(path.parent).log(saved.note)


MEASURES: Mapping[str, Callable[[Subject, Measure], Result]] = {
    "eigs": lambda subject, _: measure_eigs(subject, Search(), sampling=False),
    "trace": lambda subject, measure: measure_trace(subject.problem, probing(measure)),
    "density": lambda subject, measure: measure_density(subject.problem, quadrature(measure)),
    "surface": lambda subject, measure: measure_surface(subject.problem, section(measure)),
    "flatness": lambda subject, measure: measure_flatness(subject.problem, probing(measure), ascent=ASCENT),
    "local": lambda subject, measure: measure_local_global(
        subject, Search(), probing(measure), most=measure.local_clients
    ),
}
"""What is measured of a checkpoint, as the commands of these names do; the file is called after the kind."""


def train_cell(cell: Cell, folder: Path, data_root: Path | None, device: str, track: Sequence[str] = ()) -> None:
    """Train `cell` in `folder`, or go on with it.

    Where clients are asked for whose models that run did not keep, it begins anew. Raises `UsageError` if the folder
    holds another run, which is left as it is.
    """
    world = tried(make_world(cell.config, data_root))
    count = len(world.data.train)
    if cell.measure.samples > count:
        raise UsageError(
            f"The grid measures {cell.measure.samples} training samples ([measure] samples), and {cell.config.dataset} "
            f"has {count}: ask for {count} at most."
        )
    execution = replace(execution_of_cells(device), keep_clients=cell.measure.keep_clients)
    go_on(world, folder, execution, watch=partial(_logged, track), anew=True)


def execution_of_cells(device: str) -> Execution:
    """On a CPU one client after the other on one thread; on a GPU all clients of a round at once."""
    return (
        Execution(workers=1, engine="process", device=device)
        if device == "cpu"
        else Execution(engine="streams", device=device)
    )


@contextmanager
def _logged(track: Sequence[str], run: Run) -> Iterator[Callable[[Record], None]]:
    if not run.files.begun:
        run.begin()  # at once, so that the report lists the cell even if its first round fails
    lines = Lines(run.server.round, run.world.config.rounds, run.files.log)
    with tracked(run, track) as send:

        def on_round(record: Record) -> None:
            lines(record)
            send(record)

        yield on_round


def split_counts(world: World, final: Head) -> dict[str, Any]:
    """How many samples of each class each client has."""
    counts = class_counts(world.data.train.labels, world.parts, world.data.classes)
    return {
        "config": world.config.plain(),
        "fingerprint": final.fingerprint.plain(),
        "settings": {},
        "counts": counts.tolist(),
        "versions": provenance(),
    }
