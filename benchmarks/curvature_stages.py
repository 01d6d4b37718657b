"""How many products a search takes as the network is trained, since it depends on the gaps between eigenvalues.

PyHessian's iteration, stopped on the residual, runs on our product here, which is the same matrix to rounding; what a
product costs in either library is for `benchmarks.curvature` to say. Counts do not depend on the machine's load.
"""

import torch

from analysis.lanczos import lanczos
from analysis.power import power_iteration
from benchmarks import curvature_peers as peers
from benchmarks.exact_searches import TOL
from flatlab.malloc import keep_freed_memory

STAGES = (200, 500, 700)  # steps


def main() -> None:
    """Print a row for every stage, each with both searches for the top 1 and the top 5."""
    torch.set_num_threads(1)
    keep_freed_memory()
    print("| steps of SGD | six largest eigenvalues | top 1: flatlab | power | top 5: flatlab | power | ratio |")
    print("|---|---|---|---|---|---|---|")
    for steps in STAGES:
        operator = peers.flatlab_operator(peers.make_subject(steps))
        plain = peers.flatlab_operator(peers.make_subject(steps))
        plain.start = None  # PyHessian starts from random vectors
        counts = []
        for k in (1, 5):
            found = lanczos(operator, k, tol=TOL), power_iteration(plain, k, tol=TOL, max_iter=1000)
            assert all(pairs.converged.all() for pairs in found)
            counts += [pairs.products for pairs in found]
        largest = ", ".join(f"{value:.1f}" for value in lanczos(operator, 6, tol=TOL).values)
        row = " | ".join(map(str, counts))
        print(f"| {steps} | {largest} | {row} | {counts[3] / counts[2]:.1f} |", flush=True)
