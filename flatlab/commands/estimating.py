"""About how long a cell takes, from a short calibration on this machine.

Work is counted in images that pass forward and backward, as training does; how fast that goes is measured, for every
method apart. A product with the Hessian of n samples is taken as two such passes of n images, a loss as a third of one.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flatlab.config import RunConfig
from flatlab.engine.base import RoundInputs
from flatlab.grid import Cell, Kind, Measure
from flatlab.parameters import flatten
from flatlab.reproduce import open_engine
from flatlab.world import World, make_world

ENOUGH_SECONDS = 0.5
"""A round that took less was mostly warm-up, and is timed once more."""

EIGS_PRODUCTS, TRACE_PRODUCTS = 25, 30
"""Products that eigenvalues (whole network and layers) and trace typically take; the others' numbers are settings."""


@dataclass(frozen=True)
class Calibration:
    """Speeds on this machine."""

    images_per_second: dict[tuple[str, bool], float]  # (algorithm, man): of local training
    train_images: int  # in the training set
    test_images: int


def calibrate(cells: Sequence[Cell], device: torch.device, data_root: Path | None) -> Calibration:
    """Time one client's epoch of every method among `cells`; on a GPU, a whole round's clients at once."""
    methods = {(cell.config.algorithm, cell.config.man): cell.config for cell in cells}
    speeds: dict[tuple[str, bool], float] = {}
    world = None
    for method, config in methods.items():
        if world is None:
            world = make_world(config, data_root)
        short = config.model_copy(update={"local_epochs": 1, "model": world.config.model})
        speeds[method] = _images_per_second(World(short, world.data, world.parts, world.layout), device)
    if world is None:
        return Calibration({}, 0, 0)
    return Calibration(speeds, len(world.data.train.labels), len(world.data.test.labels))


def training_seconds(config: RunConfig, rounds: int, calibration: Calibration) -> float:
    """Time of `rounds` rounds, with their evaluations."""
    images = rounds * config.participation * calibration.train_images * config.local_epochs
    evaluations = rounds / config.eval_every if config.eval_every else 0  # by itself, under 5 % of training
    images += 3 * evaluations * calibration.test_images / 3
    return images / calibration.images_per_second[config.algorithm, config.man]


def measuring_seconds(config: RunConfig, kinds: Sequence[Kind], measure: Measure, calibration: Calibration) -> float:
    """Time of measuring `kinds` of one cell."""
    samples = min(measure.samples, calibration.train_images)
    earlier = (config.rounds - 1) // config.checkpoint_every
    passes: dict[Kind, float] = {
        "eigs": 2 * EIGS_PRODUCTS,
        "trace": 2 * TRACE_PRODUCTS,
        "density": 2 * measure.density_depth * measure.density_probes,
        "surface": measure.surface_points**2 / 3,
        "split": 0,
        "training": 2 * EIGS_PRODUCTS * earlier,
    }
    plain = max(calibration.images_per_second.values())
    return sum(passes[kind] for kind in kinds) * samples / plain


def _images_per_second(world: World, device: torch.device) -> float:
    config, rules = world.config, world.config.rules
    count = 1 if device.type == "cpu" else max(1, round(config.participation * config.clients))
    w = flatten(dict(world.new_model().named_parameters()), world.layout)
    own = {name: torch.zeros(count, world.layout.size, dtype=world.dtype) for name in rules.own}
    inputs = RoundInputs(0, list(range(count)), w, own, dict.fromkeys(rules.server, torch.zeros_like(w)))
    with open_engine(world, device) as engine:
        for _ in range(2):
            began = time.perf_counter()
            outputs = engine.run(inputs)
            seconds = time.perf_counter() - began
            if seconds > ENOUGH_SECONDS:
                break
    return outputs.images / seconds
