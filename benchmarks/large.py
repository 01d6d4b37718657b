"""`python -m benchmarks large[.NETWORK]`: top 1 and top 5 of large networks, beside the libraries there are.

On a GPU where there is one, else on one thread of the CPU. Every search runs in a process of its own, which is ended
where it holds more than `LIMIT` bytes or takes longer than a minute on a GPU, an hour on a CPU, or the seconds that the
environment variable LARGE_SECONDS names, from the process's start. On a CPU these are seconds of its one thread, not of
the clock: other work on the machine does not lengthen them. Time is counted in gradients of the same loss, measured
before and after; memory is the process's resident peak during the search, on a GPU the most that torch's
allocator had given out there, the model included and SciPy's vectors, which lie in the host's memory, left out. The
residual is ours, computed afterwards; a peer whose own rule stops at a larger one than was asked for is put to more
steps or a smaller tolerance, until it is as exact. Everyone computes in IEEE float32, and on a GPU a gradient and a
product come before any clock starts: the first of each loads kernels.
"""

import gc
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from analysis.lanczos import lanczos
from analysis.operators import SymmetricOperator, hessian, matrix_operator
from analysis.problem import make_problem
from benchmarks import curvature_peers as peers
from benchmarks.curvature import synchronise
from benchmarks.curvature_peers import Subject
from benchmarks.exact_searches import TOL, Solution, eigsh_pairs, power_pairs, true_residual
from benchmarks.large_networks import NETWORKS, make_network
from flatlab.malloc import keep_freed_memory

LIMIT = 20 << 30
PLENTY = 6 << 30  # bytes that ours may keep between products, of networks for which that is plenty,
VECTORS = {1: 13, 5: 24}  # and of others so many vectors for k pairs, with which it takes no more than SciPy
TOO_MUCH = f"more than {LIMIT >> 30} GiB"

Search = Callable[[], Solution]
T = TypeVar("T")


def main(network: str | None = None) -> None:
    """Print a table for each network, or for the one named."""
    if network and network.startswith("{"):
        return _search(**json.loads(network))
    print(f"{_machine()}; {_versions()}", flush=True)
    for name in [network] if network else NETWORKS:
        for k in (1, 5):
            print(f"\n### {name}, top {k}\n")
            print("| | gradients | products | peak, GiB | worst residual | top eigenvalue | a gradient, ms |")
            print("|---|---|---|---|---|---|---|", flush=True)
            for solver, what in SOLVERS.items():
                if peers.installed(what.module):
                    print(f"| {solver} | {_row(name, solver, k)} |", flush=True)


def _machine() -> str:
    if not torch.cuda.is_available():
        return f"{platform.machine()} CPU, one thread"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def _versions() -> str:
    """Of Python and of what is measured, as far as it is installed."""
    found = [f"Python {platform.python_version()}"]
    for name in ("torch", "scipy", "curvlinops-for-pytorch", "hessian-eigenthings", "pyhessian"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _seconds() -> float:
    """How long a search's process may take."""
    return float(os.environ.get("LARGE_SECONDS", 60 if torch.cuda.is_available() else 3600))


def _row(network: str, solver: str, k: int) -> str:
    """What a process of its own found."""
    job = json.dumps({"network": network, "solver": solver, "k": k})
    command = [sys.executable, "-m", "benchmarks", f"large.{job}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    began, on_host = time.monotonic(), not torch.cuda.is_available()
    too_long = f"not within {_seconds():g} s"
    while process.poll() is None:
        time.sleep(0.2)
        if on_host and _resident(process.pid, "VmRSS") > LIMIT:
            reason = TOO_MUCH
        elif not on_host and time.monotonic() - began > _seconds():
            reason = too_long
        else:
            continue
        process.kill()
        process.communicate()
        return f"{reason} | | | | |"
    said = process.communicate()[0].strip().splitlines()
    if process.returncode == -signal.SIGXCPU:
        return f"{too_long} | | | | |"
    if process.returncode != 0:
        return f"exit code {process.returncode} | | | | |"
    found: dict[str, Any] = json.loads(said[-1])
    if "failed" in found:
        return f"{found['failed']} | | | | |"
    return (
        f"{found['gradients']:.1f} | {found['products'] or ''} | {found['peak']:.1f} | {found['residual']:.1e} | "
        f"{found['top']:.4f} | {1000 * found['gradient']:.1f}"
    )


def _search(network: str, solver: str, k: int) -> None:
    """Search, and print what was found as one line of JSON."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_CPU, (int(_seconds()), resource.RLIM_INFINITY))
    torch.backends.cudnn.allow_tf32 = False
    keep_freed_memory()
    subject = make_network(network, device)
    try:
        found, vectors = _timed(subject, SOLVERS[solver], k)
    except torch.OutOfMemoryError:
        found = {"failed": TOO_MUCH}
    except NotImplementedError as error:  # curvlinops on GroupNorm
        found = {"failed": f"cannot: {str(error).splitlines()[0]}"}
    else:
        _tidy()
        found["residual"] = true_residual(peers.flatlab_operator(subject), vectors)
    print(json.dumps(found))


def _timed(subject: Subject, solver: "Solver", k: int) -> tuple[dict[str, Any], torch.Tensor]:
    """What a search took and found, but for its residual; and the vectors."""
    if subject.x.is_cuda:
        _warm_up(subject, solver.operator)
    before = _gradient_seconds(subject)
    search = solver.prepare(subject, k)
    with _limited():
        _forget_peak()
        began = _now(subject)
        values, vectors, products = search()
        elapsed = _now(subject) - began
        peak = torch.cuda.max_memory_allocated() if subject.x.is_cuda else _resident("self", "VmHWM")
    del search
    _tidy()
    gradient = (before + _gradient_seconds(subject)) / 2
    found = {
        "gradients": elapsed / gradient,
        "products": products,
        "peak": peak / (1 << 30),
        "top": float(values.max()),
        "gradient": gradient,
    }
    return found, vectors


def _warm_up(subject: Subject, operator: Callable[[Subject], SymmetricOperator]) -> None:
    """A gradient, a product of this library's and a small search: what runs first loads kernels, and cuSOLVER."""
    peers.gradient(subject)
    theirs = operator(subject)
    theirs(torch.randn(theirs.size, device=theirs.device))
    lanczos(matrix_operator(torch.diag(torch.arange(1.0, 101.0, device=theirs.device))), 2)
    del theirs
    _tidy()


def _forget_peak() -> None:
    """Count the peak of memory from here."""
    _tidy()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _tidy() -> None:
    """Free what is no longer needed: on a GPU the limit is on all that the allocator holds, and graphs hold on."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


@contextmanager
def _limited() -> Iterator[None]:
    """Within the block no more than `LIMIT` bytes can be had of a GPU."""
    if not torch.cuda.is_available():
        yield
        return
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _gradient_seconds(subject: Subject) -> float:
    def seconds() -> float:
        began = _now(subject)
        peers.gradient(subject)
        return _now(subject) - began

    return median(seconds() for _ in range(10 if subject.x.is_cuda else 3))


def _now(subject: Subject) -> float:
    """Seconds of this process's thread, or of the clock once a GPU has done what it was given."""
    synchronise()
    return time.perf_counter() if subject.x.is_cuda else time.process_time()


def _resident(process: int | str, what: str) -> int:
    """Bytes of resident memory (Linux); 0 where the process has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(what)), 0)


def _ours(subject: Subject, k: int) -> Search:
    vector = sum(p.nbytes for p in subject.parameters)
    memory = PLENTY if vector < PLENTY // 100 else VECTORS[k] * vector
    problem = make_problem(subject.model, "cross_entropy", (subject.x, subject.y), memory=memory)

    def search() -> Solution:
        pairs = lanczos(hessian(problem), k, tol=TOL)
        return pairs.values, pairs.vectors, pairs.products

    return search


def _eigenthings(subject: Subject, k: int) -> Search:
    """Its Lanczos takes a number of steps: 10 k, 20 k, 40 k, ..."""
    from hessian_eigenthings import lanczos as theirs

    def search(steps: int) -> Solution:
        result = theirs(peers.eigenthings(subject), k=k, max_iter=steps, which="LA", seed=0)
        return result.eigenvalues, result.eigenvectors.T, steps

    return _exact_enough(search, (10 * k << i for i in count()), peers.eigenthings_operator(subject))


def _curvlinops(subject: Subject, k: int) -> Search:
    """SciPy's search, whose vectors in float32 may be less exact than it takes them for: put to TOL, TOL / 2, ..."""

    def search(tol: float) -> Solution:
        return eigsh_pairs(peers.curvlinops_operator(subject), k, tol)

    return _exact_enough(search, (TOL / 2**i for i in count()), peers.curvlinops_operator(subject))


def _exact_enough(search: Callable[[T], Solution], settings: Iterable[T], check: SymmetricOperator) -> Search:
    """The search with the first of the settings whose residuals are `TOL` at most, found beforehand."""
    for setting in settings:  # the process ends where that takes too long
        with _limited():
            vectors = search(setting)[1]
        if true_residual(check, vectors) <= TOL:
            break
        del vectors
    return partial(search, setting)


@dataclass(frozen=True)
class Solver:
    """A library's search, and the product it multiplies with."""

    module: str  # that it needs
    operator: Callable[[Subject], SymmetricOperator]
    prepare: Callable[[Subject, int], Search]


SOLVERS: Mapping[str, Solver] = {
    "flatlab": Solver("torch", peers.flatlab_operator, _ours),
    "curvlinops + eigsh": Solver("curvlinops", peers.curvlinops_operator, _curvlinops),
    "hessian-eigenthings": Solver("hessian_eigenthings", peers.eigenthings_operator, _eigenthings),
    "PyHessian's iteration, stopped on the residual": Solver(
        "pyhessian", peers.pyhessian_operator, lambda s, k: partial(power_pairs, s, k)
    ),
}
