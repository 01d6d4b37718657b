"""About how long a cell takes, from a short calibration on this machine.

Training is counted in images that pass forward and backward, at a speed measured for every method apart; curvature in
products with the Hessian, one of which is timed on a few samples. A forward pass is taken as a third of a training
step, and as a sixth of a product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from analysis.operators import hessian
from analysis.problem import make_problem
from flatlab.clock import seconds_on
from flatlab.data import normalise
from flatlab.federated.config import RunConfig
from flatlab.federated.engine.base import RoundInputs
from flatlab.federated.execution import open_engine
from flatlab.federated.parameters import flatten
from flatlab.federated.trial import tried
from flatlab.federated.world import World, make_world
from flatlab.grid.cell_progress import probing, quadrature, section
from flatlab.grid.cells import execution_of_cells
from flatlab.grid.plan import Kind, Measure
from flatlab.measuring.eigs import Search

ENOUGH_SECONDS = 0.5
"""A trial that took less was mostly warm-up, and is timed once more."""

PRODUCT_SAMPLES = 200


@dataclass(frozen=True)
class Calibration:
    """Speeds on this machine."""

    images_per_second: dict[tuple[str, bool], float]  # (algorithm, man): of local training
    product_seconds: float  # of one Hessian product, per sample
    train_images: int  # in the training set
    test_images: int
    parameters: int  # P


def calibrate(configs: Sequence[RunConfig], device: str, data_root: Path | None) -> Calibration:
    """Time a client's epoch of every method in `configs` (on a GPU, of a round's clients), and a Hessian product."""
    world, on = make_world(configs[0], data_root), torch.device(device)
    speeds = {}
    for config in {(config.algorithm, config.man): config for config in configs}.values():
        short = config.model_copy(update={"local_epochs": 1, "model": world.config.model})
        trial = tried(World(short, world.data, world.parts, world.layout))
        speeds[config.algorithm, config.man] = _images_per_second(trial, on)
    return Calibration(
        images_per_second=speeds,
        product_seconds=_product_seconds(world, on),
        train_images=len(world.data.train.labels),
        test_images=len(world.data.test.labels),
        parameters=world.layout.size,
    )


def training_seconds(config: RunConfig, rounds: int, calibration: Calibration) -> float:
    """Time of `rounds` rounds, with their evaluations."""
    trained = rounds * config.participation * calibration.train_images * config.local_epochs
    evaluations = rounds / config.eval_every if config.eval_every else 0  # by itself, under 5 % of training
    evaluated = 3 * evaluations * calibration.test_images  # three models at most
    return (trained + evaluated / 3) / calibration.images_per_second[config.algorithm, config.man]


def measuring_seconds(config: RunConfig, kinds: Sequence[Kind], measure: Measure, calibration: Calibration) -> float:
    """Time of measuring `kinds` of one cell."""
    earlier = (config.rounds - 1) // config.checkpoint_every
    samples = min(measure.samples, calibration.train_images)
    clients = min(config.participation * config.clients, measure.local_clients or config.clients)
    losses = 1 + clients * (1 + 2 * calibration.train_images / config.clients / samples)  # in global ones
    products: dict[Kind, float] = {
        "eigs": Search().products,
        "trace": probing(measure).products,
        "density": quadrature(measure).products,
        "surface": section(measure).products,
        "split": 0,
        "flatness": 5 * Search().products + probing(measure).products,  # layers too
        "local": losses * (Search().products + probing(measure).products),
        "training": Search().products * earlier,
    }
    return sum(products[kind] for kind in kinds) * samples * calibration.product_seconds


def _images_per_second(world: World, device: torch.device) -> float:
    config = world.config
    count = 1 if device.type == "cpu" else max(1, round(config.participation * config.clients))
    w = flatten(dict(world.new_model().named_parameters()), world.layout)
    own, server = world.initial(w)
    own = {name: vector.repeat(count, 1) for name, vector in own.items()}
    inputs = RoundInputs(0, list(range(count)), w, own, server)
    with open_engine(world, execution_of_cells(device.type)) as engine:
        if device.type != "cpu":
            engine.run(inputs)  # in which steps are captured
        for _ in range(2):
            began = seconds_on(device)
            outputs = engine.run(inputs)
            seconds = seconds_on(device) - began
            if seconds > ENOUGH_SECONDS:
                break
    return outputs.images / seconds


def _product_seconds(world: World, device: torch.device) -> float:
    train = world.data.train
    images = normalise(train.images[:PRODUCT_SAMPLES], world.data.mean, world.data.std, dtype=world.dtype)
    data = (images, train.labels[:PRODUCT_SAMPLES])
    operator = hessian(make_problem(world.new_model(), "cross_entropy", data, device=device))
    vector = torch.ones(operator.size, dtype=world.dtype, device=device)
    operator(vector)  # the first also builds the graph
    began = seconds_on(device)
    operator(vector)
    return (seconds_on(device) - began) / len(images)
