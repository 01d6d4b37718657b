"""Local training against a bare forward+backward loop, workers against one another, and the time to `--help`.

Every ratio compares runs that took turns in the same minutes, since machines are shared and noisy: each entry is the
median over the turns. The bare loop is as fast as we can make it (channels_last input, freed memory kept), on one fixed
batch that is already normalised; the same loop as PyTorch runs it by default is listed for comparison.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flatlab.algorithms import ALGORITHMS
from flatlab.config import make_config
from flatlab.engine.base import RoundInputs
from flatlab.engine.process import ProcessEngine
from flatlab.engine.sequential import SequentialEngine, train_client
from flatlab.man import activation_mean_squares, tap_activations
from flatlab.memory import keep_freed_memory
from flatlab.rounds import Run, sample_clients
from flatlab.world import World, make_world

TURNS = 5
STEPS = 10  # of 50 images: one local epoch of one of 100 CIFAR-100 clients


def main() -> None:
    """Print the three tables."""
    print(f"--help answers in {help_seconds():.2f} s (median of 5)\n")
    default = in_fresh_process(partial(bare_speed, tuned=False))
    torch.set_num_threads(1)
    keep_freed_memory()
    cost_of_man()
    local_training(default)
    workers_against_one()


def cifar_world(**fields: Any) -> World:
    """CIFAR-100 with the paper's CNN on 100 clients of 500 images, one local epoch of 10 steps."""
    return make_world(
        make_config(
            {
                "dataset": "cifar100",
                "clients": 100,
                "partition": "iid",
                "participation": 0.1,
                "batch_size": 50,
                "local_epochs": 1,
                **fields,
            }
        )
    )


def cost_of_man() -> None:
    """One step of the CIFAR CNN without MAN, with it, and with it written naively, taking turns step by step."""
    model = _bare_world().new_model()
    x, y = torch.randn(50, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.arange(50)
    parameters = list(model.parameters())

    def naive(inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        squares: list[Tensor] = []

        def tap(activation: Tensor) -> Tensor:
            squares.append(activation.pow(2).mean())
            return activation

        with tap_activations(tap):
            return model(inputs), squares

    def step(forward: Callable[[Tensor], tuple[Tensor, list[Tensor]]]) -> None:
        logits, squares = forward(x)
        penalty = sum(squares, start=torch.zeros(()))
        torch.autograd.grad(F.cross_entropy(logits, y) + 0.075 * penalty, parameters)

    forms = {
        "without MAN": lambda inputs: (model(inputs), []),
        "with MAN": lambda inputs: activation_mean_squares(model, inputs),
        "with MAN, naive": naive,
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(STEPS * TURNS):
        for name, forward in forms.items():
            times[name].append(seconds(partial(step, forward)))
    bare = median(times["without MAN"])
    print("| one step | ms | over the step without MAN |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {1000 * median(values):.1f} | {100 * (median(values) / bare - 1):+.1f} % |")
    print()


def local_training(default: float) -> None:
    """Images per second of every algorithm, without and with MAN, as a fraction of the bare loop beside it."""
    world = cifar_world()
    worlds = {
        (name, man): World(
            make_config({**world.config.plain(), "algorithm": name, "hyper": {}, "man": man}),
            world.data,
            world.parts,
            world.layout,
        )
        for name in ALGORITHMS
        for man in (False, True)
    }
    fractions: dict[tuple[str, bool], list[float]] = {key: [] for key in worlds}
    bare: list[float] = []
    for _ in range(TURNS):
        for key, other in worlds.items():
            speed = bare_speed(tuned=True)
            fractions[key].append(client_speed(other) / speed)
            bare.append(speed)
    print(f"bare loop {median(bare):.0f} images/s (with PyTorch's defaults {default:.0f}), one thread\n")
    print("| algorithm | fraction of the bare loop | with MAN | fraction of PyTorch's defaults | with MAN |")
    print("|---|---|---|---|---|")
    for name in ALGORITHMS:
        plain, man = median(fractions[name, False]), median(fractions[name, True])
        ratio = median(bare) / default
        print(f"| {name} | {plain:.2f} | {man:.2f} | {plain * ratio:.2f} | {man * ratio:.2f} |")


def client_speed(world: World) -> float:
    """Images/s of one client's local epoch, from the server's model to the vectors it sends back."""
    model = world.new_model()
    w = torch.zeros(world.layout.size).normal_(std=0.02)
    own = {name: torch.zeros_like(w) for name in world.config.rules.own}
    server = {name: torch.zeros_like(w) for name in world.config.rules.server}
    began = time.perf_counter()
    result = train_client(world, model, 0, 0, w, own, server)
    return result.samples / (time.perf_counter() - began)


def bare_speed(*, tuned: bool) -> float:
    """Images/s of forward and backward alone on a fixed batch of 50, on one thread."""
    torch.set_num_threads(1)
    world = _bare_world()
    model = world.new_model()
    x, y = torch.randn(50, 3, 32, 32), torch.arange(50)
    if tuned:
        x = x.contiguous(memory_format=torch.channels_last)
    parameters = list(model.parameters())

    def step() -> None:
        torch.autograd.grad(F.cross_entropy(model(x), y), parameters)

    step()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return 50 * STEPS / (time.perf_counter() - began)


_bare: list[World] = []


def _bare_world() -> World:
    if not _bare:
        _bare.append(cifar_world(train_samples=100))
    return _bare[0]


def workers_against_one() -> None:
    """Round wall time of FedAvg on two workers against one, beside what two bare processes reach."""
    world = cifar_world(participation=0.08)
    with TemporaryDirectory() as folder:
        run = Run(world, Path(folder))
        ids = sample_clients(world.config, 0)
        inputs = RoundInputs(0, ids, run.server.w, {}, {})
        times: dict[int, list[float]] = {1: [], 2: []}
        evaluation: list[float] = []
        with SequentialEngine(world) as one, ProcessEngine(world, 2, len(ids)) as two:
            for engine in (one, two):
                engine.run(inputs)
            for _ in range(TURNS):
                for workers, engine in ((1, one), (2, two)):
                    times[workers].append(seconds(lambda e=engine: e.run(inputs)))  # type: ignore[misc]
                evaluation.append(seconds(lambda: two.evaluate([run.server.w])))
    print(f"\nround of 8 clients: 2 workers are {median(times[1]) / median(times[2]):.2f} times as fast as 1")
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(_bare_process, [1, 1]))
        alone = next(iter(pool.map(_bare_process, [3])))
        together = sum(pool.map(_bare_process, [3, 3]))
    print(f"bare loop: 2 processes are {together / alone:.2f} times as fast as 1")
    print(f"evaluating one model on 10,000 images: {median(evaluation):.2f} s on 2 workers")


def _bare_process(turns: int) -> float:
    keep_freed_memory()
    return median(bare_speed(tuned=True) for _ in range(turns))


def seconds(work: Callable[[], object]) -> float:
    """Wall time of `work()`."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_fresh_process(work: Callable[[], float]) -> float:
    """The value of `work()` in a process of its own, where nothing was tuned."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return median(pool.submit(work).result() for _ in range(3))


def help_seconds() -> float:
    """Median wall time of `flatlab --help`."""
    command = [sys.executable, "-m", "flatlab", "--help"]
    return median(seconds(lambda: subprocess.run(command, capture_output=True, check=True)) for _ in range(5))
