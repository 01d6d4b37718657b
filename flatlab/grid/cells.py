"""What is done for one cell of a grid: train it, then measure its checkpoints. Runs in worker processes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from analysis.problem import Problem
from analysis.spectrum import eigs
from flatlab.cli.console import write_json
from flatlab.federated.partition import class_counts
from flatlab.federated.world import World, make_world
from flatlab.grid.carry import is_measured, train_cell
from flatlab.grid.plan import Cell, Measure
from flatlab.measuring.density import Quadrature, density_numbers
from flatlab.measuring.eigs import plain_report
from flatlab.measuring.subjects import Measurement, open_checkpoint
from flatlab.measuring.surface import Section, surface_numbers
from flatlab.measuring.trace import Probing, trace_numbers
from flatlab.runs.checkpoint import provenance


@dataclass(frozen=True)
class CellWork:
    """The work on a cell: a function that can be sent to other processes with what it needs."""

    measure: Measure
    data_root: Path | None
    device: str
    trusted_model: str | None = None  # package.module:function that may run, named on the command line

    def __call__(self, cell: Cell, folder: Path) -> None:
        """Train and measure what `folder` lacks; each measurement is written as soon as it is made."""
        world = None
        if not (folder / "final.pt").exists():
            world = train_cell(cell, folder, self.data_root, torch.device(self.device))
        for kind in cell.kinds:
            if is_measured(kind, folder):
                continue
            if kind == "training":
                for path in sorted(folder.glob("round-*.pt")):
                    self._measure("eigs", path)
            elif kind == "split":
                world = world or make_world(cell.config, self.data_root)
                write_json(folder / "final.split.json", split_counts(world))
            else:
                self._measure(kind, folder / "final.pt")

    def _measure(self, kind: str, path: Path) -> None:
        measurement = Measurement(self.measure.samples, "float32", self.device, self.data_root, self.trusted_model)
        subject = open_checkpoint(path, measurement)
        numbers = MEASURES[kind](subject.problem, self.measure)
        write_json(path.with_suffix(f".{kind}.json"), {**subject.about, **numbers})


MEASURES: Mapping[str, Callable[[Problem, Measure], dict[str, Any]]] = {
    "eigs": lambda problem, _: plain_report(eigs(problem)),
    "trace": lambda problem, measure: trace_numbers(problem, Probing(measure.trace_tol)),
    "density": lambda problem, measure: density_numbers(
        problem, Quadrature(measure.density_depth, measure.density_probes)
    ),
    "surface": lambda problem, measure: surface_numbers(problem, Section(points=measure.surface_points)),
}
"""What is measured of a checkpoint, as the commands of these names do; the file is called after the kind."""


def split_counts(world: World) -> dict[str, Any]:
    """How many samples of each class each client has."""
    counts = class_counts(world.data.train.labels, world.parts, world.data.classes)
    return {"config": world.config.plain(), "counts": counts.tolist(), "versions": provenance()}
