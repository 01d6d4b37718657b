"""Local training against a bare forward+backward loop, workers against one another, and the time to `--help`.

Machines are shared and noisy, so what is compared takes turns, step by step where it can, and each entry is the median
over the turns of a ratio within one turn. There are two bare loops of forward and backward on one fixed batch that is
already normalised: plain PyTorch, in a process of its own, and the same as fast as we can make it (channels_last input,
freed memory kept), which is how a client trains.
"""

import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
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

from analysis.taps import tap_activations
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.config import make_config
from flatlab.federated.engine.base import RoundInputs
from flatlab.federated.engine.process import ProcessEngine
from flatlab.federated.engine.sequential import SequentialEngine, train_client
from flatlab.federated.man import penalty_terms
from flatlab.federated.participants import sample_clients
from flatlab.federated.rounds import Run
from flatlab.federated.world import World, make_world
from flatlab.malloc import keep_freed_memory

TURNS = 7
BATCH = 50
STEPS = 10  # one local epoch of one of 100 CIFAR-100 clients


def main(part: str | None = None) -> None:
    """Print the tables, or the one of a part: help, man, bfloat16, clients or workers."""
    torch.set_num_threads(1)
    keep_freed_memory()
    for name, table in PARTS.items():
        if part in (None, name):
            table()


def time_of_help() -> None:
    """How long `flatlab --help` takes."""
    print(f"--help answers in {help_seconds():.2f} s (median of {TURNS})\n")


def cifar_world(**fields: Any) -> World:
    """CIFAR-100 with the paper's CNN on 100 clients of 500 images, one local epoch of 10 steps."""
    return make_world(
        make_config(
            {
                "dataset": "cifar100",
                "clients": 100,
                "partition": "iid",
                "participation": 0.1,
                "batch_size": BATCH,
                "local_epochs": 1,
                **fields,
            }
        )
    )


def cost_of_man() -> None:
    """One step of the CIFAR CNN without MAN, with it, and with it written naively, taking turns step by step."""
    model = _bare_world().new_model()
    x, y = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.arange(BATCH)
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
        "with MAN": lambda inputs: penalty_terms(model, inputs),
        "with MAN, naive": naive,
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    names = deque(forms)
    for _ in range(2 * STEPS * TURNS):
        names.rotate()  # so that no form always runs after the same one
        for name in names:
            times[name].append(seconds(partial(step, forms[name])))
    print("| one step | ms | over the step without MAN |\n|---|---|---|")
    for name, values in times.items():
        ratio = median(with_man / without for with_man, without in zip(values, times["without MAN"], strict=True))
        print(f"| {name} | {1000 * median(values):.1f} | {100 * (ratio - 1):+.1f} % |")
    print()


def bfloat16() -> None:
    """A client's local epoch in bf16 against the same in ieee, without and with MAN, taking turns."""
    world = cifar_world()
    print("| one local epoch | ieee, images/s | bf16, images/s | bf16 over ieee |\n|---|---|---|---|")
    for man in (False, True):
        worlds = [_variant(world, "fedavg", man=man, precision=precision) for precision in ("ieee", "bf16")]
        times: list[list[float]] = [[], []]
        for _ in range(5 * TURNS):
            for taken, variant in zip(times, worlds, strict=True):
                taken.append(_epoch_seconds(variant))
        speeds = [BATCH * STEPS / median(taken) for taken in times]
        gain = median(ieee / bf16 for ieee, bf16 in zip(*times, strict=True))
        print(f"| {'with' if man else 'without'} MAN | {speeds[0]:.0f} | {speeds[1]:.0f} | {gain:.2f} |")
    print()


def _epoch_seconds(world: World) -> float:
    w = torch.zeros(world.layout.size).normal_(std=0.02)
    model = world.new_model()
    return seconds(lambda: train_client(world, model, 0, 0, w, {}, {}))


def local_training() -> None:
    """Images per second of every algorithm, without and with MAN, as a fraction of the bare loops beside it."""
    world = cifar_world()
    rows = [(name, man) for name in ALGORITHMS for man in (False, True)]
    fractions: dict[tuple[str, bool], list[float]] = {row: [] for row in rows}
    gains, tuned = [], []
    with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
        for _ in range(TURNS):
            for name, man in rows:
                fractions[name, man].append(client_fraction(_variant(world, name, man=man)))
            for _ in range(TURNS):
                tuned.append(bare_speed(tuned=True))
                gains.append(tuned[-1] / elsewhere.submit(bare_speed, tuned=False).result())
    gain = median(gains)
    print(f"tuned bare loop {median(tuned):.0f} images/s on one thread, {gain:.2f} times plain PyTorch\n")
    print("| algorithm | of the tuned loop | with MAN | points that MAN costs | of plain PyTorch | with MAN |")
    print("|---|---|---|---|---|---|")
    for name in ALGORITHMS:
        without, with_man = median(fractions[name, False]), median(fractions[name, True])
        print(
            f"| {name} | {without:.2f} | {with_man:.2f} | {100 * (without - with_man):.1f} "
            f"| {gain * without:.2f} | {gain * with_man:.2f} |"
        )


def _variant(world: World, algorithm: str, **fields: Any) -> World:
    config = make_config({**world.config.plain(), "algorithm": algorithm, "hyper": {}, **fields})
    return World(config, world.data, world.parts, world.layout)


def client_fraction(world: World) -> float:
    """Speed of a client's local epoch, from the server's model to the vectors it sends back, over the tuned bare loop.

    A step of the bare loop runs before each of the client's forward passes, so that both see the same machine.
    """
    bare: list[float] = []
    bare_step = make_bare_step(tuned=True)
    model = world.new_model()
    model.register_forward_pre_hook(lambda *_: bare.append(seconds(bare_step)))
    w = torch.zeros(world.layout.size).normal_(std=0.02)
    own = {name: torch.zeros_like(w).normal_(std=1e-3) for name in world.config.rules.own}
    server = {name: torch.zeros_like(w).normal_(std=1e-3) for name in world.config.rules.server}
    began = time.perf_counter()
    result = train_client(world, model, 0, 0, w, own, server)
    client = time.perf_counter() - began - sum(bare)
    return result.samples / client * sum(bare) / (BATCH * len(bare))


def bare_speed(*, tuned: bool) -> float:
    """Images/s of forward and backward alone, on one thread."""
    torch.set_num_threads(1)
    step = make_bare_step(tuned=tuned)
    step()
    return BATCH * STEPS / seconds(lambda: [step() for _ in range(STEPS)])


def make_bare_step(*, tuned: bool) -> Callable[[], object]:
    """One forward and backward pass on a fixed batch."""
    model = _bare_world().new_model()
    x, y = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH)
    if tuned:
        x = x.contiguous(memory_format=torch.channels_last)
    parameters = list(model.parameters())
    return lambda: torch.autograd.grad(F.cross_entropy(model(x), y), parameters)


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


def help_seconds() -> float:
    """Median wall time of `flatlab --help`."""
    command = [sys.executable, "-m", "flatlab", "--help"]
    return median(seconds(lambda: subprocess.run(command, capture_output=True, check=True)) for _ in range(TURNS))


PARTS: Mapping[str, Callable[[], None]] = {
    "help": time_of_help,
    "man": cost_of_man,
    "bfloat16": bfloat16,
    "clients": local_training,
    "workers": workers_against_one,
}
