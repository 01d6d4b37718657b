"""`python -m benchmarks large[.NETWORK]`: top 1 and top 5 of large networks, beside the libraries there are.

Every search runs in a process of its own, which is ended where it holds more than `LIMIT` bytes or takes longer than
`SECONDS`. Time is counted in gradients of the same loss, measured before and after; memory is the process's resident
peak during the search; the residual is ours, computed afterwards, so that what stops early shows it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from analysis.lanczos import lanczos
from analysis.operators import hessian
from analysis.problem import make_problem
from benchmarks import curvature_peers as peers
from benchmarks.curvature import TOL, Solution, eigsh_pairs, power_pairs, seconds_of, true_residual
from benchmarks.curvature_peers import Subject
from benchmarks.large_networks import NETWORKS, make_network
from flatlab.malloc import keep_freed_memory

LIMIT = 20 << 30
GRAPHS = 6 << 30  # bytes that ours may keep between products
SECONDS = 3600

Search = Callable[[], Solution]


def main(network: str | None = None) -> None:
    """Print a table for each network, or for the one named."""
    if network and network.startswith("{"):
        return _search(**json.loads(network))
    for name in [network] if network else NETWORKS:
        for k in (1, 5):
            print(f"\n### {name}, top {k}\n")
            print("| | gradients | products | peak, GiB | worst residual | top eigenvalue |\n|---|---|---|---|---|---|")
            for solver, (module, _) in SOLVERS.items():
                if peers.installed(module):
                    print(f"| {solver} | {_row(name, solver, k)} |", flush=True)


def _row(network: str, solver: str, k: int) -> str:
    """What a process of its own found."""
    job = json.dumps({"network": network, "solver": solver, "k": k})
    command = [sys.executable, "-m", "benchmarks", f"large.{job}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    began = time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        if _resident(process.pid, "VmRSS") > LIMIT:
            reason = f"more than {LIMIT >> 30} GiB"
        elif time.monotonic() - began > SECONDS:
            reason = f"not within {SECONDS // 60} minutes"
        else:
            continue
        process.kill()
        process.communicate()
        return f"{reason} | | | |"
    said = process.communicate()[0].strip().splitlines()
    if process.returncode != 0:
        return f"exit code {process.returncode} | | | |"
    found: dict[str, Any] = json.loads(said[-1])
    return (
        f"{found['gradients']:.1f} | {found['products'] or ''} | {found['peak']:.1f} | {found['residual']:.1e} | "
        f"{found['top']:.4f}"
    )


def _search(network: str, solver: str, k: int) -> None:
    """Search, and print what was found as one line of JSON."""
    torch.set_num_threads(1)
    keep_freed_memory()
    subject = make_network(network)
    before = _gradient_seconds(subject)
    search = SOLVERS[solver][1](subject, k)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    began = time.perf_counter()
    values, vectors, products = search()
    elapsed = time.perf_counter() - began
    peak = _resident("self", "VmHWM")
    gradient = (before + _gradient_seconds(subject)) / 2
    found = {
        "gradients": elapsed / gradient,
        "products": products,
        "peak": peak / (1 << 30),
        "residual": true_residual(peers.flatlab_operator(subject), vectors),
        "top": float(values.max()),
    }
    print(json.dumps(found))


def _gradient_seconds(subject: Subject) -> float:
    return median(seconds_of(lambda: peers.gradient(subject)) for _ in range(3))


def _resident(process: int | str, what: str) -> int:
    """Bytes of resident memory (Linux); 0 where the process has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(what)), 0)


def _ours(subject: Subject, k: int) -> Search:
    problem = make_problem(subject.model, "cross_entropy", (subject.x, subject.y), memory=GRAPHS)

    def search() -> Solution:
        pairs = lanczos(hessian(problem), k, tol=TOL)
        return pairs.values, pairs.vectors, pairs.products

    return search


def _eigenthings(subject: Subject, k: int) -> Search:
    """Its Lanczos takes a number of steps: the first of 10 k, 20 k, ... that is exact enough, found beforehand."""
    from hessian_eigenthings import lanczos as theirs

    def search(steps: int) -> Solution:
        result = theirs(peers.eigenthings(subject), k=k, max_iter=steps, which="LA", seed=0)
        return result.eigenvalues, result.eigenvectors.T, steps

    check, steps = peers.eigenthings_operator(subject), 10 * k
    while true_residual(check, search(steps)[1]) > TOL:
        steps *= 2
    return partial(search, steps)


SOLVERS: Mapping[str, tuple[str, Callable[[Subject, int], Search]]] = {
    "flatlab": ("torch", _ours),
    "curvlinops + eigsh": ("curvlinops", lambda s, k: partial(eigsh_pairs, peers.curvlinops_operator(s), k)),
    "hessian-eigenthings": ("hessian_eigenthings", _eigenthings),
    "PyHessian's iteration, stopped on the residual": ("pyhessian", lambda s, k: partial(power_pairs, s, k)),
}
"""By name, the module it needs, and what prepares a search."""
