"""`python -m benchmarks gpu[.PART]`: the engine of streams on a GPU, checked, timed, and put to the paper's cells.

Parts are checks, speed, and N, the number of paper cells to run or go on with (`gpu.3`), or a cell by name
(`gpu.fedavg-man-iid`); they need CIFAR-100 and one of them CIFAR-10 (`FLATLAB_DATA`), are run in the folder GPU_OUT,
and GPU_SET holds further words of `flatlab train`. Without a part: checks and speed, on random images in the shape of
CIFAR-100. On a machine without a GPU the same code runs at a small size on the CPU: a rehearsal, whose times mean
nothing.
"""

import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from analysis.operators import gauss_newton, hessian
from analysis.problem import make_problem
from benchmarks.curvature import seconds_of
from flatlab.data import ImageData, Split
from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig, make_config
from flatlab.federated.engine.base import Engine
from flatlab.federated.engine.batched import BatchedEngine
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.engine.streams import StreamsEngine
from flatlab.federated.man import penalty_terms
from flatlab.federated.models import cifar_cnn
from flatlab.federated.parameters import layout_of
from flatlab.federated.participants import most_participants
from flatlab.federated.precision import Precision, arithmetic
from flatlab.federated.rounds import Run
from flatlab.federated.world import World, initial_model
from flatlab.files import atomic_write
from flatlab.runs.checkpoint import load_checkpoint, save_checkpoint

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
PAPERS = ("fedavg", "fedprox", "scaffold", "feddyn", "feddc", "fedsam", "fedasam", "fedspeed")
FIRST = tuple(f"{name}{man}" for name in ("feddc", "feddyn", "fedavg", "fedspeed", "fedsam") for man in ("", "-man"))
"""Of the paper's table for CIFAR-100 those at Dirichlet 0.3."""

CELLS: Mapping[str, tuple[str, str]] = {
    **{name: (name, "cifar100-dir0.3") for name in FIRST},
    "cifar10-feddc-man": ("feddc-man", "cifar10-dir0.3"),
    **{f"{name}-{split}": (name, f"cifar100-{split}") for split in ("dir0.6", "iid") for name in FIRST},
}
"""Method and preset of the paper's 30 cells of CIFAR-100, and one of CIFAR-10, in the order in which they are run."""

OUT = Path(os.environ.get("GPU_OUT", "gpu-cells"))
"""Where cells are run, a folder each; what is to be brought home is in its `packed`, `TOGETHER` cells to a file."""

TOGETHER = 4  # some 13 MB

PARTICIPANTS = 10
CLIENT_IMAGES = 500 if GPU else 20
PRECISIONS: tuple[Precision, ...] = ("ieee", "tf32", "bf16")


def main(part: str | None = None) -> None:
    """Run the parts named, or checks and speed."""
    print(f"{torch.cuda.get_device_name() if GPU else 'a CPU (a rehearsal)'}, torch {torch.__version__}\n", flush=True)
    if part is None:
        for work in PARTS.values():
            work()
    elif part in PARTS:
        PARTS[part]()
    elif part in CELLS:
        run_cell(part)
    elif part.isdecimal():
        for cell in [c for c in CELLS if not _reported(c).exists()][: int(part)]:
            run_cell(cell)
    else:
        raise UsageError(
            f"gpu.{part}: the parts are {', '.join(PARTS)}, a number of cells, or one of {', '.join(CELLS)}."
        )


def checks() -> None:
    """Streams against one client after the other on the CPU, products against float64, MAN's gradient in bfloat16."""
    print("| two clients, one round, against one after the other in float64 | float64 | float32 |\n|---|---|---|")
    for name in PAPERS:
        for man in (False, True):
            fields = {
                "algorithm": name,
                "man": man,
                "batch_size": 10,
                "local_epochs": 1,
                "rounds": 1,
                "participation": 1.0,
            }
            worlds = [_world((20, 13), dtype=dtype, **fields) for dtype in ("float64", "float32")]
            exact = _trained(SequentialEngine(worlds[0]), worlds[0])
            errors = [_difference(_trained(_streams(world), world), exact) for world in worlds]
            print(f"| {_title(name, man)} | {' | '.join(f'{e:.1e}' for e in errors)} |", flush=True)
    print(f"\nproducts against float64 on the CPU: {', '.join(f'{n} {e:.1e}' for n, e in _products().items())}")
    print(f"MAN's gradient in bfloat16 against the same rounded once: {_man_in_bfloat16():.1e}")
    said: list[str] = []
    world = replace(
        _world((20, 20), rounds=1, participation=1.0),
        config=_config(2, model=f"{__name__}:asking", rounds=1, participation=1.0),
    )
    world = replace(world, layout=layout_of(initial_model(world.config, world.data)))
    engine = StreamsEngine(world, DEVICE, 2, said.append)
    error = _difference(_trained(engine, world), _trained(SequentialEngine(world), world))
    print(f"a model that asks the device for a value: {error:.1e}; {' '.join(said) or 'nothing said'}\n", flush=True)


def speed() -> None:
    """Rounds per second of the paper's algorithms on the CIFAR CNN, and the other forms beside FedAvg's."""
    print(
        "| 10 clients x 500 images x 5 epochs | ieee, rounds/s | tf32 | bf16 | 500 rounds, bf16 | peak of bf16, GiB |"
    )
    print("|---|---|---|---|---|---|")
    for name in PAPERS:
        for man in (False, True):
            seconds = {p: _round_seconds(_streams, name, man, p) for p in PRECISIONS}
            peak = torch.cuda.max_memory_allocated() / (1 << 30) if GPU else 0.0
            rates = " | ".join(f"{1 / s:.2f}" for s in seconds.values())
            print(f"| {_title(name, man)} | {rates} | {500 * seconds['bf16']:.0f} s | {peak:.1f} |", flush=True)
            if name == "fedavg" and not man:
                fedavg = seconds
    print("\n| FedAvg, other forms | ieee, rounds/s | bf16 |\n|---|---|---|")
    for title, form in (("one stack (vmap)", _stack), ("streams, launched kernel by kernel", _uncaptured)):
        rates = " | ".join(f"{1 / _round_seconds(form, 'fedavg', False, p):.2f}" for p in ("ieee", "bf16"))
        print(f"| {title} | {rates} |", flush=True)
    print("\n| FedAvg | images/s | TFLOP/s | of a matrix product's |\n|---|---|---|---|")
    for precision in PRECISIONS:
        images = CLIENT_IMAGES * PARTICIPANTS * _config(1).local_epochs / fedavg[precision]
        reached, limit = images * _flops_of_an_image(), _flops_of_products(precision)
        print(f"| {precision} | {images:,.0f} | {reached / 1e12:.2f} | {100 * reached / limit:.1f} % |", flush=True)
    print()


PARTS: Mapping[str, Callable[[], None]] = {"checks": checks, "speed": speed}


def run_cell(name: str) -> None:
    """Run a cell of the paper, or go on with it, and pack what it leaves: the reported model, rounds, eigenvalues."""
    folder, (method, preset) = OUT / name, CELLS[name]
    command = [sys.executable, "-m", "flatlab", "train", "--out", str(folder)]
    man = ["--man"] if method.endswith("-man") else []
    fields = ["--preset", preset, "--algorithm", method.removesuffix("-man"), *man]
    settings = ["--set", "precision=bf16", "--set", "eval_every=10", *os.environ.get("GPU_SET", "").split()]
    begun = ["--resume"] if (folder / "config.toml").exists() else [*fields, *settings]
    began = time.monotonic()
    subprocess.run([*command, *begun, "--track-eigs", "25"], check=True)
    took = time.monotonic() - began
    final = load_checkpoint(folder / "final.pt")
    save_checkpoint(_reported(name), replace(final, models={}))
    _pack(tuple(CELLS).index(name) // TOGETHER)
    print(f"{name}: {100 * final.metrics['test_accuracy']:.2f} %, {took:.0f} s", flush=True)


def _reported(name: str) -> Path:
    return OUT / name / "reported.pt"


def _pack(number: int) -> None:
    """Write the archive of that number anew, with all of its cells that are finished."""
    together = tuple(CELLS)[number * TOGETHER : (number + 1) * TOGETHER]
    with atomic_write(OUT / "packed" / f"{number}.tar.gz") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for cell in (cell for cell in together if _reported(cell).exists()):
            for name in ("reported.pt", "metrics.jsonl", "config.toml"):
                archive.add(OUT / cell / name, f"{cell}/{name}")


def _title(name: str, man: bool) -> str:
    return f"{name}{' + MAN' if man else ''}"


def _config(clients: int, **fields: Any) -> RunConfig:
    plain = {"model": "cifar-cnn", "clients": clients, "batch_size": 50, "lr": 0.1, "weight_decay": 1e-3, "seed": 0}
    return make_config({"dataset": "cifar100", "local_epochs": 5 if GPU else 1, **plain, **fields})


def _world(sizes: tuple[int, ...], **fields: Any) -> World:
    """Random images in the shape of CIFAR-100, so many for each client."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        images = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return Split(images, torch.randint(0, 100, (n,), generator=generator))

    n = sum(sizes)
    data = ImageData("random", split(n), split(100), 100, (0.5,) * 3, (0.25,) * 3, augment=True)
    config = _config(len(sizes), **fields)
    parts = np.split(np.random.default_rng(0).permutation(n), np.cumsum(sizes)[:-1])
    return World(config, data, list(parts), layout_of(initial_model(config, data)))


def _streams(world: World) -> Engine:
    return StreamsEngine(world, DEVICE, most_participants(world.config))


def _stack(world: World) -> Engine:
    return BatchedEngine(world, DEVICE)


def _uncaptured(world: World) -> Engine:
    engine = StreamsEngine(world, DEVICE, most_participants(world.config))
    engine.captures = False
    return engine


def _trained(engine: Engine, world: World) -> Tensor:
    """The server's model after the run's rounds, of which nothing is written."""
    run = Run(world, Path())
    with engine:
        for _ in range(world.config.rounds):
            run.advance(engine)
    return run.server.w.double()


def _difference(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


def _products() -> dict[str, float]:
    torch.manual_seed(0)
    model, data = cifar_cnn((3, 32, 32), 100), (torch.randn(64, 3, 32, 32), torch.arange(64))
    exact = make_problem(model, "cross_entropy", data, dtype=torch.float64)
    ours = make_problem(model, "cross_entropy", data, device=DEVICE)
    v = torch.randn(exact.size)
    return {
        make.__name__: _difference(make(ours)(v.to(DEVICE)).cpu().double(), make(exact)(v.double()))
        for make in (hessian, gauss_newton)
    }


def _man_in_bfloat16() -> float:
    """What MAN adds to the gradient of an activation in bfloat16, against the exact sum rounded to bfloat16."""
    torch.manual_seed(0)
    a = torch.randn(64, 1000, device=DEVICE).relu().bfloat16().requires_grad_()
    above = torch.randn(64, 1000, device=DEVICE).bfloat16()
    activation, weight = nn.ReLU(), 12345.0
    passed_on, (term,) = penalty_terms(lambda x: activation(x) + 0, a)  # type: ignore[arg-type]
    (ours,) = torch.autograd.grad([passed_on, weight * term], a, [above, torch.ones(())])
    exact = (above.double() + 2 * weight / a.numel() * a.double()).where(a > 0, 0)
    return _difference(ours.double(), exact.bfloat16().double())


class _Asking(nn.Module):
    """Asks whether its input is anything at all, which no graph can capture."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.flatten(1))
        return logits if x.abs().sum().item() > 0 else -logits


def asking(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """The model of that check."""
    return _Asking(classes)


def _round_seconds(open_engine: Callable[[World], Engine], name: str, man: bool, precision: str) -> float:
    """A round of `PARTICIPANTS` clients, training and combining, after one in which steps were captured."""
    sizes = (CLIENT_IMAGES,) * PARTICIPANTS
    world = _world(sizes, algorithm=name, man=man, precision=precision, participation=1.0, rounds=100)
    run = Run(world, Path(), device=DEVICE)
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    with open_engine(world) as engine:
        run.advance(engine)
        rounds, began = 0, time.perf_counter()
        while rounds < (3 if GPU else 1):
            run.advance(engine)
            rounds += 1
        _ = run.server.w.sum().item()
        return (time.perf_counter() - began) / rounds


def _flops_of_an_image() -> float:
    """Floating-point operations of an image's way forward and backward through the CIFAR CNN."""
    model, images = cifar_cnn((3, 32, 32), 100), torch.randn(50, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return float(counter.get_total_flops()) / len(images)


def _flops_of_products(precision: Precision) -> float:
    """Floating-point operations a second of large matrix products in `precision`: the most there is to reach."""
    n = 8192 if GPU else 512
    a = torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    with arithmetic(precision, a.device):
        seconds = min(seconds_of(lambda: a @ a) for _ in range(5))
    return 2 * n**3 / seconds
