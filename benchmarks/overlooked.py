"""How often a search misses the end of the spectrum it certifies, over thousands of spectra known densely.

Small random networks, of the kinds whose gradient says least about the top: one sample, many labels, a softmax inside,
one of two heads fitted, nearly converged; and diagonal matrices whose start vector has next to no part in the top. Each
matrix is made dense once in float64; every search starts from its gradient, as on a network. A miss is a result that
claims convergence while an eigenvalue lies beyond it by more than twice the tolerance, and than rounding.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from analysis.eigenpairs import Eigenpairs, rounding
from analysis.lanczos import lanczos
from analysis.operators import SymmetricOperator
from analysis.overlooked import BEYOND
from analysis.power import power_iteration
from benchmarks.curvature_peers import flatlab_operator, make_subject

TOL = 1e-3
PROBABILITIES = (0.5, 0.2, 0.05, 1e-2, 1e-3, 1e-4, 1e-6)

Loss = Callable[[Tensor], Tensor]
"""theta (p,) -> L."""


@dataclass(frozen=True)
class Spectrum:
    """One matrix, where searches start, and its eigenvalues."""

    kind: str
    matrix: Tensor  # (p, p) float64
    start: Tensor  # (p, 1)
    values: Tensor  # (p,) ascending


def spectra(count: int, seed: int = 0) -> Iterator[Spectrum]:
    """`count` spectra, the kinds taking turns."""
    for index, (kind, make) in zip(range(count), cycle(KINDS.items())):
        torch.manual_seed(seed * 1_000_003 + index)
        matrix, start = make()
        yield Spectrum(kind, matrix, start[:, None], torch.linalg.eigvalsh(matrix))


def _between(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def _network(samples: int, loss: str, steps: int, *, softmax: bool = False) -> tuple[Tensor, Tensor]:
    """An MLP of 50 to 200 parameters after `steps` of gradient descent."""
    inputs, hidden, outputs = _between(4, 9), _between(5, 10), _between(2, 4)
    phi = (nn.Tanh, nn.ReLU, nn.GELU)[_between(0, 2)]
    body = [nn.Linear(inputs, hidden), phi(), nn.Linear(hidden, outputs), *([nn.Softmax(-1)] if softmax else [])]
    x = torch.randn(samples, inputs, dtype=torch.float64)
    targets = {
        "cross_entropy": torch.randint(outputs, (samples,)),
        "mse_loss": torch.randn(samples, outputs, dtype=torch.float64),
        "binary_cross_entropy_with_logits": torch.randint(2, (samples, outputs)).double(),
    }[loss]
    model = nn.Sequential(*body).double()
    return _descended(model, lambda z: getattr(F, loss)(z, targets), x, steps)


def _two_heads() -> tuple[Tensor, Tensor]:
    """A body with two heads, one of which is fitted: its part of the gradient is nearly zero, its curvature is not."""
    x = torch.randn(_between(2, 12), 6, dtype=torch.float64)
    body = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        fitted, other = body(x)[:, :1], torch.randn(len(x), 1, dtype=torch.float64)
    weight = 10.0 ** _between(0, 2)
    return _descended(
        body, lambda z: weight * F.mse_loss(z[:, :1], fitted) + F.mse_loss(z[:, 1:], other), x, _between(0, 3)
    )


def _diagonal() -> tuple[Tensor, Tensor]:
    """A top that the start has 10^-4 to 10^-12 of, above a decaying or a flat rest, negative eigenvalues among it."""
    size = _between(41, 200)
    rest = torch.rand(size - 1, dtype=torch.float64) ** _between(1, 6) * (1 - 2 * (torch.rand(size - 1) < 0.3))
    top = rest.max() * (1 + 10.0 ** -(3 * torch.rand((), dtype=torch.float64)))
    start = torch.cat([10.0 ** -(4 + 8 * torch.rand(1, dtype=torch.float64)), torch.randn(size - 1).double()])
    return torch.diag(torch.cat([top[None], rest])), start


def _descended(model: nn.Module, loss: Loss, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The dense Hessian and the gradient of loss(model(x)) after gradient descent."""
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def at(theta: Tensor) -> Tensor:
        pieces = zip(parameters.items(), theta.split(sizes), strict=True)
        return loss(functional_call(model, {name: piece.view_as(p) for (name, p), piece in pieces}, (x,)))

    theta = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    slope = torch.func.grad(at)
    for _ in range(steps):
        theta = theta - 0.1 * slope(theta)
    matrix = torch.func.hessian(at)(theta)
    return (matrix + matrix.T) / 2, slope(theta)


KINDS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "plain": lambda: _network(_between(5, 30), "cross_entropy", _between(0, 30)),
    "one sample": lambda: _network(1, ("mse_loss", "cross_entropy")[_between(0, 1)], _between(0, 150)),
    "multi-label": lambda: _network(_between(1, 20), "binary_cross_entropy_with_logits", _between(0, 100)),
    "softmax inside": lambda: _network(_between(1, 20), "cross_entropy", _between(0, 100), softmax=True),
    "nearly converged": lambda: _network(_between(1, 4), "mse_loss", _between(300, 600)),
    "two heads": _two_heads,
    "diagonal": _diagonal,
}

Find = Callable[[SymmetricOperator], Eigenpairs]

SEARCHES: dict[str, tuple[Find, Callable[[Tensor], Tensor]]] = {
    "largest": (lambda A: lanczos(A, tol=TOL), lambda values: values[-1:]),
    "smallest": (lambda A: lanczos(A, which="smallest", tol=TOL), lambda values: values[:1]),
    "largest three": (lambda A: lanczos(A, 3, tol=TOL), lambda values: values.flip(0)[:3]),
    "power": (lambda A: power_iteration(A, tol=TOL, max_iter=400), lambda values: values[values.abs().argmax()][None]),
}
"""A search, and what it should find among the ascending eigenvalues."""


def main(part: str = "1250") -> None:
    """Misses over as many matrices as `part` says, and the cost of excluding them; "cifar": that on the CIFAR CNN."""
    torch.set_num_threads(1)
    if part == "cifar":
        A = flatlab_operator(make_subject())
        A.exact = None  # one more product whatever the probability
        return print_costs([A])
    matrices = list(spectra(int(part)))
    print_misses(matrices)
    print_costs([_operator(spectrum, torch.float64) for spectrum in matrices])


def print_misses(matrices: Sequence[Spectrum]) -> None:
    """A row for every search and precision."""
    print("| search | spectra | converged | to rounding | missed | residual too small | products |")
    print("|---|---|---|---|---|---|---|")
    for name, (find, wanted) in SEARCHES.items():
        for dtype in (torch.float64, torch.float32):
            row: Counter[str] = Counter()
            for spectrum in matrices:
                row.update(_judged(spectrum, find, wanted, dtype))
            cells = [row["spectra"], row["converged"], row["rounded"], row["missed"], row["understated"]]
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            print(f"| {label} | {' | '.join(map(str, cells))} | {row['products'] / row['spectra']:.1f} |", flush=True)


def print_costs(operators: Sequence[SymmetricOperator]) -> None:
    """Products of a top 1, on average, against the probability with which it may have been missed."""
    print("\n| missed with probability at most | products |\n|---|---|")
    for probability in PROBABILITIES:
        with patch("analysis.lanczos.PROBABILITY", probability), patch("analysis.lanczos._RARELY", probability):
            products = sum(lanczos(A, tol=TOL).products for A in operators)
        print(f"| {probability:g} | {products / len(operators):.1f} |", flush=True)


def _operator(spectrum: Spectrum, dtype: torch.dtype) -> SymmetricOperator:
    matrix = spectrum.matrix.to(dtype)
    exact = None if dtype == torch.float64 else lambda rows: rows.double() @ spectrum.matrix
    start = spectrum.start.to(dtype)
    return SymmetricOperator(len(matrix), dtype, matrix.device, lambda rows: rows @ matrix, lambda: start, exact)


def _judged(spectrum: Spectrum, find: Find, wanted: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Counter[str]:
    """One search against the dense spectrum."""
    pairs, right = find(_operator(spectrum, dtype)), wanted(spectrum.values)
    floor = 1e-14 * spectrum.values.abs().max()  # of the dense eigenvalues themselves
    short = (right.abs() - pairs.values.abs()).abs() - pairs.residuals
    distances = (spectrum.values - pairs.values[:, None]).abs().min(dim=1).values
    converged = bool(pairs.converged.all())
    slack = (BEYOND * TOL * right.abs()).clamp(min=rounding(spectrum.values.abs().max().item(), dtype)) + floor
    return Counter(
        spectra=1,
        converged=converged,
        rounded=not converged and pairs.finished,
        missed=pairs.finished and bool((short > slack).any()),
        understated=bool((distances > pairs.residuals + floor).any()),
        products=pairs.products,
    )
