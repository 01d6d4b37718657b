"""`python -m benchmarks flower[.ROUNDS]`: rounds over Flower beside the process engine's, and the bytes that cross.

CIFAR CNN, 20 clients of 500 CIFAR-100 images, 4 of them in a round, one local epoch. The same rounds are trained by
the process engine with two workers, by two nodes on the loopback with TLS, and by two nodes of Flower's simulation
where Ray is installed; all end with the same bits. Engines take turns, round by round, and a row's ratio is the median
over the rounds of the ratio within a turn. The first round is left out: there Flower starts its processes. Bytes are
those of flatlab's messages; what Flower and TLS put around them is not counted.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from flatlab.federated.config import make_config
from flatlab.federated.engine import flower, process
from flatlab.federated.engine.base import SIMULATION, Engine, Means
from flatlab.federated.participants import most_participants
from flatlab.federated.rounds import Run
from flatlab.federated.trial import tried
from flatlab.federated.world import World, make_world

ROUNDS = 10
NODES = 2
RUN = {
    "dataset": "cifar100",
    "train_samples": 10_000,
    "test_samples": 100,
    "clients": 20,
    "partition": "iid",
    "participation": 0.2,
    "local_epochs": 1,
}
METHODS = ("fedavg", "scaffold")


def main(rounds: str = str(ROUNDS)) -> None:
    """Print a table for each method."""
    for method in METHODS:
        world = tried(make_world(make_config({**RUN, "algorithm": method, "rounds": int(rounds) + 1})))
        compare(world, int(rounds))


def compare(world: World, rounds: int) -> None:
    """Print rounds per second of every engine and what crosses between server and nodes in a round."""
    size = world.layout.size
    print(f"{world.config.algorithm}, {size:,} parameters, {most_participants(world.config)} participants a round\n")
    print(
        "| engine | rounds/s | of the process engine | bytes out a round | bytes back a round |\n|---|---|---|---|---|"
    )
    with TemporaryDirectory() as folder, ExitStack() as stack:
        engines = {name: stack.enter_context(engine) for name, engine in opened(world, Path(folder)).items()}
        runs = {name: Run(world, Path(folder) / name, at_nodes=name != "process") for name in engines}
        times: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(rounds + 1):
            if turn == 1:
                before = carried(engines)
            for name, run in runs.items():
                began = time.monotonic()
                run.advance(engines[name])
                times[name].append(time.monotonic() - began)
        crossed = carried(engines)
        for name, run in runs.items():
            assert torch.equal(run.server.w, runs["process"].server.w)
            taken = times[name][1:]
            ratio = median(ours / theirs for ours, theirs in zip(times["process"][1:], taken, strict=True))
            out, back = ((now - then) / rounds for now, then in zip(crossed[name], before[name], strict=True))
            print(f"| {name} | {1 / median(taken):.2f} | {ratio:.2f} | {out:,.0f} | {back:,.0f} |")
    print()


def opened(world: World, folder: Path) -> dict[str, Engine]:
    """The engines by the names in the table."""

    def means(name: str, superlink: str | None = None) -> Means:
        slots = most_participants(world.config)
        return Means(NODES, torch.device("cpu"), slots, folder=folder / name, tell=print, superlink=superlink)

    engines = {
        "process": process.open_engine(world, means("process")),
        "nodes": flower.open_engine(world, means("nodes")),
    }
    if find_spec("ray") is not None:
        engines["simulation"] = flower.open_engine(world, means("simulation", SIMULATION))
    return engines


def carried(engines: Mapping[str, Engine]) -> dict[str, tuple[int, int]]:
    """Bytes sent and received up to now; the process engine's vectors lie in shared memory."""
    return {
        name: (engine.link.sent, engine.link.received) if isinstance(engine, flower.FlowerEngine) else (0, 0)
        for name, engine in engines.items()
    }
