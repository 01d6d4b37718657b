"""What is done for one cell of a grid: train it, then measure its checkpoints. Runs in worker processes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from analysis.density import spectral_density
from analysis.flatness import positions
from analysis.layers import find_layers
from analysis.operators import hessian
from analysis.problem import Problem
from analysis.spectrum import eigs
from analysis.surface import filter_normalised_directions, loss_surface
from analysis.trace import Estimate, hutchinson
from flatlab.checkpoint import Checkpoint, provenance
from flatlab.commands.measuring import Measurement, as_json, open_problem
from flatlab.commands.output import write_json
from flatlab.grid import Cell, Measure
from flatlab.partition import class_counts
from flatlab.reproduce import is_measured, train_cell
from flatlab.world import World, make_world


@dataclass(frozen=True)
class CellWork:
    """The work on a cell: a function that can be sent to other processes with what it needs."""

    measure: Measure
    data_root: Path | None
    device: str

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
        measurement = Measurement(self.measure.samples, "float32", self.device, self.data_root)
        checkpoint, problem = open_problem(path, measurement)
        write_json(path.with_suffix(f".{kind}.json"), MEASURES[kind](path, checkpoint, problem, self.measure))


def split_counts(world: World) -> dict[str, Any]:
    """How many samples of each class each client has."""
    counts = class_counts(world.data.train.labels, world.parts, world.data.classes)
    return {"config": world.config.plain(), "counts": counts.tolist(), "versions": provenance()}


def _eigs(path: Path, checkpoint: Checkpoint, problem: Problem, measure: Measure) -> dict[str, Any]:
    return as_json(path, checkpoint, eigs(problem))


def _trace(path: Path, checkpoint: Checkpoint, problem: Problem, measure: Measure) -> dict[str, Any]:
    places = positions(problem)
    groups = {
        layer.name: torch.cat([places[name] for name in layer.parameters.values()]) for layer in find_layers(problem)
    }
    moments = hutchinson(hessian(problem), tol=measure.trace_tol, groups=groups)
    return _header(path, checkpoint, problem) | {
        "trace": _estimate(moments.trace),
        "frobenius": _estimate(moments.frobenius),
        "layers": [{"name": name, "trace": _estimate(trace)} for name, trace in moments.groups.items()],
        "converged": moments.converged,
        "hvps": moments.products,
    }


def _density(path: Path, checkpoint: Checkpoint, problem: Problem, measure: Measure) -> dict[str, Any]:
    density = spectral_density(hessian(problem), depth=measure.density_depth, probes=measure.density_probes)
    return _header(path, checkpoint, problem) | {
        "grid": density.grid.tolist(),
        "density": density.density.tolist(),
        "standard_error": density.standard_error.tolist(),
        "sigma": density.sigma,
        "size": density.size,
        "hvps": density.products,
    }


def _surface(path: Path, checkpoint: Checkpoint, problem: Problem, measure: Measure) -> dict[str, Any]:
    directions = filter_normalised_directions(problem, count=2)
    surface = loss_surface(problem, directions, points=measure.surface_points)
    return _header(path, checkpoint, problem) | {
        "directions": "filter-normalised random, seed 0",
        "a": surface.a.tolist(),
        "b": surface.b.tolist(),
        "losses": surface.losses.tolist(),
    }


MEASURES: Mapping[str, Callable[[Path, Checkpoint, Problem, Measure], dict[str, Any]]] = {
    "eigs": _eigs,
    "trace": _trace,
    "density": _density,
    "surface": _surface,
}
"""What is measured of a checkpoint, as plain data; the file is called after the kind."""


def _header(path: Path, checkpoint: Checkpoint, problem: Problem) -> dict[str, Any]:
    config = checkpoint.config
    return {
        "checkpoint": str(path),
        "data": {"dataset": config.dataset, "split": "train", "samples": problem.samples},
        "versions": provenance(),
        "run": {"config": config.plain(), "round": checkpoint.round, "metrics": checkpoint.metrics},
    }


def _estimate(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "standard_error": estimate.standard_error}
