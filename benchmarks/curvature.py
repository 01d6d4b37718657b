"""Hessian products and eigenvalues of the CIFAR CNN on 512 CIFAR-100 images, beside the libraries there are.

Time is counted in gradients of the same loss, measured before and after every entry: the gradient of all 512 images at
once, and the fastest one we know (batches of 128, channels_last). Every residual is ours, from products made after the
clock was stopped, so that what stops early shows it. `python -m benchmarks curvature.top5` runs one part alone.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from analysis.lanczos import lanczos
from analysis.operators import SymmetricOperator
from analysis.power import power_iteration
from analysis.problem import make_problem
from analysis.spectrum import layer_eigenpairs
from analysis.vectors import norm
from benchmarks import curvature_peers as peers
from benchmarks.curvature_peers import Subject, installed, make_subject
from benchmarks.exact_searches import TOL, Solution, eigsh_pairs, power_pairs, true_residual
from flatlab.federated.models import build_model
from flatlab.malloc import keep_freed_memory

TURNS = 7


def main(part: str | None = None) -> None:
    """Print the table of one part, or of all."""
    torch.set_num_threads(1)
    keep_freed_memory()
    subject = make_subject()
    parts: dict[str, Callable[[Subject], None]] = {
        "products": products,
        "streamed": streamed,
        "top1": lambda s: solves(s, 1, solvers(s, 1) | eigenthings_solvers(s)),
        "top5": lambda s: solves(s, 5, solvers(s, 5)),
        "layers": layers,
    }
    for name in [part] if part else parts:
        print(f"\n### {name}\n")
        parts[name](subject)


@dataclass(frozen=True)
class Unit:
    """Seconds of one gradient."""

    at_once: float
    fastest: float

    def of(self, seconds: float) -> str:
        """Two columns: in gradients at once, in fastest gradients."""
        return f"{seconds / self.at_once:.1f} | {seconds / self.fastest:.1f}"


def unit(subject: Subject) -> Unit:
    """Measure both gradients, each the median of three."""
    fastest = [seconds_of(lambda: peers.gradient(subject, 128, torch.channels_last)) for _ in range(3)]
    return Unit(median(seconds_of(lambda: peers.gradient(subject)) for _ in range(3)), median(fastest))


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of `work()`, on a GPU too."""
    synchronise()
    began = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - began


def synchronise() -> None:
    """Wait for what a GPU, if one is in use, has been given to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def products(subject: Subject) -> None:
    """One Hessian-vector product with all graphs kept, all libraries taking turns."""
    makers: dict[str, tuple[str, Callable[[Subject], SymmetricOperator]]] = {
        "flatlab": ("torch", peers.flatlab_operator),
        "PyHessian": ("pyhessian", peers.pyhessian_operator),
        "jvp(grad)": ("torch", peers.jvp_operator),
        "hessian-eigenthings": ("hessian_eigenthings", peers.eigenthings_operator),
        "curvlinops": ("curvlinops", peers.curvlinops_operator),
    }
    operators = {name: make(subject) for name, (module, make) in makers.items() if installed(module)}
    times, mean, differences = _in_turns(subject, operators)
    print("| one product, graphs kept | gradients | fastest gradients | differs from ours by |\n|---|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {seconds / mean.at_once:.2f} | {seconds / mean.fastest:.2f} | {differences[name]:.0e} |")


def streamed(subject: Subject) -> None:
    """One product over batches whose graphs are not kept: time in turns, memory each in a process of its own."""
    makers = {name: make for name, (module, make) in STREAMED.items() if installed(module)}
    times, mean, _ = _in_turns(subject, {name: make(subject) for name, make in makers.items()})
    print("| one product, streamed | gradients | fastest gradients | peak of tensors, MiB | resident, MiB more |")
    print("|---|---|---|---|---|")
    for name, seconds in times.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            tensors, more = pool.submit(
                _streamed_memory, name, subject.model.state_dict(), subject.x, subject.y
            ).result()
        print(f"| {name} | {seconds / mean.at_once:.2f} | {seconds / mean.fastest:.2f} | {tensors:.0f} | {more:.0f} |")
    for size in (66, peers.BATCH):
        tensors = tensors_peak(partial(peers.gradient, subject, size))
        print(f"| (a gradient in batches of {size}) | | | {tensors:.0f} | |")


STREAMED: Mapping[str, tuple[str, Callable[[Subject], SymmetricOperator]]] = {
    "flatlab": ("torch", peers.flatlab_streamed),
    "PyHessian": ("pyhessian", peers.pyhessian_streamed),
    "curvlinops": ("curvlinops", lambda subject: peers.curvlinops_operator(subject, peers.BATCH)),
}


def _streamed_memory(name: str, state: Mapping[str, Tensor], x: Tensor, y: Tensor) -> tuple[float, float]:
    """MiB that a product's tensors take at their peak, and by which resident memory grows beyond that of a batch."""
    torch.set_num_threads(1)
    model = build_model("cifar-cnn", input_shape=(3, 32, 32), classes=100)
    model.load_state_dict(state)
    subject = Subject(model, x, y)
    peers.gradient(subject, peers.BATCH)
    operator, v = STREAMED[name][1](subject), _direction(subject)
    before = _resident_peak()
    operator(v)
    more = _resident_peak() - before
    return tensors_peak(partial(operator, v)), more


def _direction(subject: Subject) -> Tensor:
    return torch.randn(sum(p.numel() for p in subject.parameters), generator=torch.Generator().manual_seed(0))


def _in_turns(
    subject: Subject, operators: Mapping[str, SymmetricOperator]
) -> tuple[dict[str, float], Unit, dict[str, float]]:
    """Median seconds of each operator's product, the units between them, and how far each is from the first's."""
    v = _direction(subject)
    first = {name: operator(v) for name, operator in operators.items()}  # builds the graphs where they are kept
    exact = next(iter(first.values()))
    peers.gradient(subject)
    units, times = [], {name: list[float]() for name in operators}
    for _ in range(TURNS):
        units.append(unit(subject))
        for name, operator in operators.items():
            times[name].append(seconds_of(partial(operator, v)))
    mean = Unit(median(u.at_once for u in units), median(u.fastest for u in units))
    print(f"a gradient takes {mean.at_once:.2f} s at once, {mean.fastest:.2f} s at its fastest\n")
    differences = {name: norm(product - exact) / norm(exact) for name, product in first.items()}
    return {name: median(seconds) for name, seconds in times.items()}, mean, differences


def tensors_peak(work: Callable[[], object]) -> float:
    """The most MiB that torch's allocator had given out at one time during `work()`, beyond what it had before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    assert recorded.profiler is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return float(max(accumulate(sizes))) / (1 << 20)


def _resident_peak() -> float:
    """Highest resident memory of this process so far, in MiB (Linux; getrusage would count the parent's too)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


Solver = Callable[[], Solution]


def solvers(subject: Subject, k: int) -> dict[str, Solver]:
    """Ours, SciPy's on our product and on curvlinops', and PyHessian's at the same exactness and as shipped."""

    def ours() -> Solution:
        pairs = lanczos(peers.flatlab_operator(subject), k, tol=TOL)
        return pairs.values, pairs.vectors, pairs.products

    found: dict[str, Solver] = {
        "flatlab": ours,
        "SciPy eigsh on our product": lambda: eigsh_pairs(peers.flatlab_operator(subject), k),
    }
    if installed("curvlinops"):
        found["curvlinops + eigsh"] = lambda: eigsh_pairs(peers.curvlinops_operator(subject), k)
    if installed("pyhessian"):
        found["PyHessian's iteration, stopped on the residual"] = lambda: power_pairs(subject, k)
        found["PyHessian as shipped"] = lambda: _pyhessian(subject, k)
    return found


def eigenthings_solvers(subject: Subject) -> dict[str, Solver]:
    """hessian-eigenthings' own top 1, at the same exactness and as shipped."""
    if not installed("hessian_eigenthings"):
        return {}
    return {
        "hessian-eigenthings, 12 steps": lambda: _eigenthings(subject, 1, 12),
        "hessian-eigenthings as shipped": lambda: _eigenthings(subject, 1, None),
    }


def solves(subject: Subject, k: int, searches: Mapping[str, Solver]) -> None:
    """Find the top k by each solver, once, and check what it returned."""
    check = peers.flatlab_operator(subject)
    peers.gradient(subject)
    print(f"| top {k} | gradients | fastest gradients | products | worst residual | top eigenvalue |")
    print("|---|---|---|---|---|---|")
    for name, solve in searches.items():
        before = unit(subject)
        began = time.perf_counter()
        values, vectors, count = solve()
        elapsed = time.perf_counter() - began
        after = unit(subject)
        beside = Unit((before.at_once + after.at_once) / 2, (before.fastest + after.fastest) / 2)
        worst = true_residual(check, vectors)
        print(f"| {name} | {beside.of(elapsed)} | {count or ''} | {worst:.1e} | {values.max():.3f} |", flush=True)


def _pyhessian(subject: Subject, k: int) -> Solution:
    computer = peers.pyhessian_computer(subject, data=(subject.x, subject.y))
    values, vectors = computer.eigenvalues(top_n=k)
    return torch.tensor(values), torch.stack([peers.flat(v) for v in vectors], dim=1), None


def _eigenthings(subject: Subject, k: int, steps: int | None) -> Solution:
    from hessian_eigenthings import lanczos as theirs

    result = theirs(peers.eigenthings(subject), k=k, max_iter=steps, which="LA", seed=0)
    return result.eigenvalues, result.eigenvectors.T, steps or 2 * k


def layers(subject: Subject) -> None:
    """The top eigenvalue of every layer's block."""
    problem = make_problem(subject.model, "cross_entropy", (subject.x, subject.y))
    peers.gradient(subject)
    rows: dict[str, Callable[[], dict[str, float]]] = {
        "flatlab": lambda: {n: pairs.values[0].item() for n, pairs in layer_eigenpairs(problem, tol=TOL).items()}
    }
    if installed("pyhessian"):
        rows["PyHessian's iteration per layer, stopped on the residual"] = lambda: _power_per_layer(subject)
    print("| top 1 of five layers | gradients | fastest gradients | eigenvalues |\n|---|---|---|---|")
    for name, solve in rows.items():
        before = unit(subject)
        began = time.perf_counter()
        values = solve()
        elapsed = time.perf_counter() - began
        after = unit(subject)
        beside = Unit((before.at_once + after.at_once) / 2, (before.fastest + after.fastest) / 2)
        listed = ", ".join(f"{layer} {value:.3f}" for layer, value in values.items())
        print(f"| {name} | {beside.of(elapsed)} | {listed} |", flush=True)


def _power_per_layer(subject: Subject) -> dict[str, float]:
    found = {}
    for name, layer in subject.model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            subject.model.requires_grad_(False)
            layer.requires_grad_()
            found[name] = power_iteration(peers.pyhessian_operator(subject), 1, tol=TOL).values[0].item()
    subject.model.requires_grad_()
    return found
