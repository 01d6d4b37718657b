"""`python -m benchmarks float32[.COUNT]`: claims of searches in float32 that are not true of H.

Networks whose layers differ in size by up to a thousand, so that H as float32 evaluates it is not H. Each claim, "an
eigenvalue lies within the residual of the value" and "the residual is |H v - value v|", is held to the dense Hessian in
float64, for the top three of the network and of every layer.
"""

from collections import Counter

import torch
from torch import Tensor, nn

from analysis.confirmation import in_float64
from analysis.eigenpairs import Eigenpairs
from analysis.lanczos import lanczos
from analysis.operators import hessian
from analysis.problem import Problem, make_problem
from analysis.spectrum import layer_eigenpairs

COUNT = 70
TOLERANCES = (1e-3, 1e-5, 1e-6)


def main(count: str = str(COUNT)) -> None:
    """A row for every tolerance."""
    torch.set_num_threads(1)
    print("| tol | networks | pairs | converged | to rounding | no eigenvalue within | residual too small |")
    print("|---|---|---|---|---|---|---|")
    for tol in TOLERANCES:
        row: Counter[str] = Counter()
        for seed in range(int(count)):
            problem = stiff(seed)
            row.update(_judged(dense(problem), lanczos(hessian(problem), 3, tol=tol)))
            for name, pairs in layer_eigenpairs(problem, 3, tol=tol).items():
                own = problem.select([f"{name}.weight", f"{name}.bias"])
                row.update(_judged(dense(own), pairs))
        cells = [row[key] for key in ("pairs", "converged", "rounded", "outside", "understated")]
        print(f"| {tol:g} | {count} | {' | '.join(map(str, cells))} |", flush=True)


def stiff(seed: int) -> Problem:
    """An MLP in float32 whose last layer is 1, 10, 100 or 1000 times its usual size, and its data."""
    torch.manual_seed(seed)
    last = nn.Linear(6, 3)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh() if seed % 8 < 4 else nn.ReLU(), last)
    with torch.no_grad():
        last.weight.mul_(10.0 ** (seed % 4))
    loss, targets = ("mse", torch.randn(12, 3)) if seed % 3 else ("cross_entropy", torch.randint(3, (12,)))
    return make_problem(model, loss, (torch.randn(12, 5), targets))


def dense(problem: Problem) -> Tensor:
    """H in float64 (p, p)."""
    return hessian(in_float64(problem)).rows(torch.eye(problem.size, dtype=torch.float64))


def _judged(matrix: Tensor, pairs: Eigenpairs) -> Counter[str]:
    floor = 1e-14 * torch.linalg.matrix_norm(matrix, ord=2)
    vectors = pairs.vectors.double()
    vectors = vectors / vectors.norm(dim=0)
    residuals = (matrix @ vectors - pairs.values * vectors).norm(dim=0)
    distances = (torch.linalg.eigvalsh(matrix) - pairs.values[:, None]).abs().min(dim=1).values
    return Counter(
        pairs=len(pairs.values),
        converged=int(pairs.converged.sum()),
        rounded=int(pairs.rounded.sum()),
        outside=int((distances > pairs.residuals + floor).sum()),
        understated=int((residuals > pairs.residuals * (1 + 1e-4) + floor).sum()),
    )
