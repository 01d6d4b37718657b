"""Trace, diagonal and Frobenius norm from products with random signs.

For z with independent entries +1 or -1,    E[z^T A z] = tr A,    E[z * (A z)] = diag A,    E[|A z|^2] = |A|_F^2
(Hutchinson 1990; Bekas, Kokiopoulou and Saad 2007). Every probe costs one product and serves all three. The estimates
come with the standard error of their mean, and the number of probes grows until that of the trace is small enough.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.operators import SymmetricOperator
from analysis.vectors import combine, dots

_FEWEST = 10  # probes before a standard error is trusted


@dataclass(frozen=True)
class Estimate:
    """A mean over random probes."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Moments:
    """What a number of probes tell about a matrix."""

    trace: Estimate
    frobenius: Estimate  # |A|_F, the root of the sum of squared eigenvalues
    groups: Mapping[str, Estimate]  # the trace of each diagonal block asked for
    diagonal: Tensor  # (p,) float64
    diagonal_error: Tensor  # (p,) float64, standard errors
    products: int  # = probes
    converged: bool  # the standard error of the trace is at most tol |trace|


def hutchinson(
    operator: SymmetricOperator,
    *,
    tol: float = 0.02,
    max_probes: int = 400,
    groups: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> Moments:
    """Estimate trace, Frobenius norm and diagonal until the trace's standard error is at most tol |trace|.

    At least 10 probes are taken, at most `max_probes`. `groups` names sets of positions (n,) whose blocks' traces are
    wanted; they cost nothing more. `progress` is told the probes so far and the relative standard error.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = groups or {}
    sums = torch.zeros(2, operator.size, dtype=torch.float64, device=operator.device)  # of z * (A z) and of its square
    traces: list[float] = []
    squares: list[float] = []
    parts: dict[str, list[float]] = {name: [] for name in groups}
    converged = False
    while not converged and len(traces) < max_probes:
        z = random_signs(1, operator, generator)[0]
        image = operator(z).double()
        terms = z.double() * image
        sums += torch.stack([terms, terms**2])
        traces.append(terms.sum().item())
        squares.append(image.square().sum().item())
        for name, positions in groups.items():
            parts[name].append(terms[positions].sum().item())
        trace = mean_of(traces)
        converged = len(traces) >= _FEWEST and trace.standard_error <= tol * abs(trace.value)
        if progress and len(traces) > 1:
            progress(len(traces), trace.standard_error / abs(trace.value) if trace.value else math.inf)
    count = len(traces)
    diagonal, mean_square = sums / count
    variance = (mean_square - diagonal**2).clamp(min=0) * count / max(count - 1, 1)
    return Moments(
        trace=mean_of(traces),
        frobenius=_root(mean_of(squares)),
        groups={name: mean_of(values) for name, values in parts.items()},
        diagonal=diagonal,
        diagonal_error=(variance / count).sqrt(),
        products=count,
        converged=converged,
    )


def hutch_plus_plus(operator: SymmetricOperator, products: int = 60, *, seed: int = 0) -> Estimate:
    """The trace by Hutch++: exact on a sketched subspace, Hutchinson on the rest.

    Q spans A S for random signs S; tr A = tr(Q^T A Q) + tr((I - Q Q^T) A (I - Q Q^T)). A third of the products each go
    into the sketch, the exact part and the rest. The error falls like 1 / products, against 1 / sqrt(products) of
    Hutchinson's, where the spectrum decays. The standard error is that of the rest. (Meyer, Musco, Musco and Woodruff
    2021.)
    """
    generator = torch.Generator().manual_seed(seed)
    third = min(products // 3, operator.size)
    sketch = operator(random_signs(third, operator, generator).T).double()
    q = torch.linalg.qr(sketch).Q.T.to(operator.torch_dtype)
    exact = (q.double() * operator(q.T).T.double()).sum().item()
    z = random_signs(third, operator, generator)
    rest = z - combine(dots(z, q), q)
    rest = rest - combine(dots(rest, q), q)
    remainder = mean_of((rest.double() * operator(rest.T).T.double()).sum(1).tolist())
    return Estimate(exact + remainder.value, remainder.standard_error)


def random_signs(count: int, operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """Rows (count, p) of +1 and -1, the same on every device for a given CPU generator."""
    signs = torch.randint(0, 2, (count, operator.size), generator=generator, dtype=torch.int8)
    return (2 * signs - 1).to(dtype=operator.torch_dtype, device=operator.device)


def mean_of(values: list[float]) -> Estimate:
    """The mean and its standard error, infinite for a single value."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return Estimate(mean, math.inf)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, math.sqrt(variance / count))


def _root(square: Estimate) -> Estimate:
    """The root of an estimated square; its error to first order."""
    root = math.sqrt(square.value)
    return Estimate(root, square.standard_error / (2 * root) if root else 0.0)
