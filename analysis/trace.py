"""Trace, diagonal and Frobenius norm from products with random signs.

For z with independent entries +1 or -1,    E[z^T A z] = tr A,    E[z * (A z)] = diag A,    E[|A z|^2] = |A|_F^2
(Hutchinson 1990; Bekas, Kokiopoulou and Saad 2007). Every probe costs one product and serves all three. The estimates
come with the standard error of their mean, and the number of probes grows until that of the trace is small enough.

A standard error from n probes is too small as often as too large, and a search that stops where it is small meets the
former more often: value +- 1.96 standard errors then covers 92 % of the cases instead of 95 %. So errors are widened by
Student's quantile over the normal one, and 20 probes are taken at least: 94.5 to 95 % in simulations (tests). A matrix
of no more rows than that is worked through whole, without probes.

Nor do probes show what rounding takes of A itself, of which there is little left where a softmax is saturated. So one
of them is multiplied in float64 too, and what that changes counts as an error beside the standard error.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from scipy import stats
from torch import Tensor

from analysis.confirmation import lost_to_rounding
from analysis.eigenpairs import rounding as rounding_of
from analysis.errors import MeasurementError
from analysis.operators import SymmetricOperator
from analysis.vectors import dot, norm, orthogonalised

_FEWEST = 20  # probes before a standard error is trusted
_NORMAL = 1.959964  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class Estimate:
    """A mean over random probes."""

    value: float
    standard_error: float  # value +- 1.96 of it covers about 95 %; infinite for a single probe
    rounding: float = 0.0  # the part of it that more probes do not lessen, as far as that is known

    def is_settled(self, tol: float) -> bool:
        """Whether the probes have done what the tolerance asks: their own part of the error is at most tol |value|."""
        return self.standard_error**2 - self.rounding**2 <= (tol * self.value) ** 2

    def is_rounded(self, tol: float) -> bool:
        """Whether rounding takes half of what the tolerance leaves, or more."""
        return self.rounding > 0.5 * tol * abs(self.value)


@dataclass(frozen=True)
class Moments:
    """What a number of probes tell about a matrix."""

    trace: Estimate
    frobenius: Estimate  # |A|_F, the root of the sum of squared eigenvalues
    groups: Mapping[str, Estimate]  # the trace of each diagonal block asked for
    diagonal: Tensor  # (p,) float64
    diagonal_error: Tensor  # (p,) float64, standard errors
    products: int  # = probes, p where the matrix is worked through whole; and one in float64 where that is more
    converged: bool  # the standard error of the trace is at most tol |trace|, rounding at most half of that
    rounded: bool  # it would have converged but for rounding


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

    At least 20 probes are taken, and at most `max_probes` products. A matrix of p <= 20 (and `max_probes`) is
    multiplied with the unit vectors instead, and all errors are those of rounding; so is one for which p probes do not
    suffice, or as many as `max_probes` leaves beside these p products. `groups` names sets of positions (n,) whose
    blocks' traces are wanted; they cost nothing more. Errors count what rounding takes of the matrix even in float64
    (`analysis.saturation`). `progress` is told the probes so far and the relative standard error.

    >>> import torch
    >>> from analysis.operators import matrix_operator
    >>> from analysis.trace import hutchinson
    >>> A = matrix_operator(torch.diag(torch.tensor([5.0, 3.0, 1.0])))
    >>> moments = hutchinson(A)  # few dimensions are worked through whole
    >>> moments.trace, moments.diagonal.tolist()
    (Estimate(value=9.0, standard_error=0.0, rounding=0.0), [5.0, 3.0, 1.0])
    """
    groups = groups or {}
    if operator.size <= min(_FEWEST, max_probes):
        return _exact_moments(operator, groups, tol)
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(2, operator.size, dtype=torch.float64, device=operator.device)  # of z * (A z) and of its square
    traces: list[float] = []
    squares: list[float] = []
    parts: dict[str, list[float]] = {name: [] for name in groups}
    converged = False
    whole = operator.size <= max_probes
    most = min(operator.size, max_probes - operator.size) if whole else max_probes
    while not converged and len(traces) < most:
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
    if whole and not converged:
        exact = _exact_moments(operator, groups, tol)
        return replace(exact, products=count + exact.products)
    diagonal, mean_square = sums / count
    variance = (mean_square - diagonal**2).clamp(min=0) * count / max(count - 1, 1)
    moments = Moments(
        trace=mean_of(traces),
        frobenius=_root(mean_of(squares)),
        groups={name: mean_of(values) for name, values in parts.items()},
        diagonal=diagonal,
        diagonal_error=(variance / count).sqrt() if count > 1 else torch.full_like(diagonal, math.inf),
        products=count,
        converged=converged,
        rounded=False,
    )
    return _with_rounding(moments, _Rounding.of(operator, z, image), groups, tol)


def _exact_moments(operator: SymmetricOperator, groups: Mapping[str, Tensor], tol: float = 1.0) -> Moments:
    matrix = operator(torch.eye(operator.size, dtype=operator.torch_dtype, device=operator.device)).double()
    diagonal = matrix.diagonal()
    moments = Moments(
        trace=Estimate(diagonal.sum().item(), 0.0),
        frobenius=Estimate(torch.linalg.vector_norm(matrix).item(), 0.0),
        groups={name: Estimate(diagonal[positions].sum().item(), 0.0) for name, positions in groups.items()},
        diagonal=diagonal,
        diagonal_error=torch.zeros_like(diagonal),
        products=operator.size,
        converged=True,
        rounded=False,
    )
    z = random_signs(1, operator, torch.Generator().manual_seed(0))[0]
    return _with_rounding(moments, _Rounding.of(operator, z, matrix @ z.double()), groups, tol)


@dataclass(frozen=True)
class _Rounding:
    """What rounding does to the estimates, as one probe z shows it."""

    terms: Tensor  # (p,) float64, the errors of z * (A z)
    length: float  # that of |A z|, relative
    lost: float  # the share of A that float64 does not have either
    products: int  # in float64

    @classmethod
    def of(cls, operator: SymmetricOperator, z: Tensor, image: Tensor) -> "_Rounding":
        """From A z as the operator has it."""
        error = lost_to_rounding(operator.exact, z, image.double())
        length = norm(image.double())
        relative = abs(norm(image.double() + error) / length - 1) if length else 0.0
        return cls(z.double() * error, relative, operator.lost, int(operator.exact is not None))

    def in_trace(self, estimate: Estimate, positions: Tensor | None = None) -> Estimate:
        """The trace of the block at `positions`, with the error widened."""
        terms = self.terms if positions is None else self.terms[positions]
        # Errors of one sign add up; of those of either, one sum may be small by chance.
        return _widened(estimate, max(abs(terms.sum().item()), norm(terms)) + self.lost * abs(estimate.value))

    def in_frobenius(self, estimate: Estimate) -> Estimate:
        """|A|_F, with the error widened."""
        return _widened(estimate, (self.length + self.lost) * estimate.value)


def _widened(estimate: Estimate, rounding: float) -> Estimate:
    return Estimate(estimate.value, math.hypot(estimate.standard_error, rounding), rounding)


def _with_rounding(moments: Moments, rounding: _Rounding, groups: Mapping[str, Tensor], tol: float) -> Moments:
    trace = rounding.in_trace(moments.trace)
    rounded = trace.is_rounded(tol)
    return replace(
        moments,
        trace=trace,
        frobenius=rounding.in_frobenius(moments.frobenius),
        groups={name: rounding.in_trace(own, groups[name]) for name, own in moments.groups.items()},
        products=moments.products + rounding.products,
        converged=moments.converged and not rounded,
        rounded=moments.converged and rounded,
    )


def hutch_plus_plus(operator: SymmetricOperator, products: int = 60, *, seed: int = 0) -> Estimate:
    """The trace by Hutch++: exact on a sketched subspace, Hutchinson on the rest.

    Q spans A S for random signs S; tr A = tr(Q^T A Q) + tr((I - Q Q^T) A (I - Q Q^T)). A third of the products each go
    into the sketch, whose vectors are held, the exact part and the rest. The error falls like 1 / products, against
    1 / sqrt(products) of Hutchinson's, where the spectrum decays. The standard error is that of the rest, and of
    rounding as in `hutchinson`. A matrix of p <= `products` is multiplied with the unit vectors. (Meyer,
    Musco, Musco and Woodruff 2021.) Raises `MeasurementError` for fewer than 6 products: two vectors each are the
    least.

    >>> import torch
    >>> from analysis.operators import matrix_operator
    >>> from analysis.trace import hutch_plus_plus
    >>> A = matrix_operator(torch.diag(torch.tensor([5.0, 3.0, 1.0])))
    >>> round(hutch_plus_plus(A, products=9).value, 5)
    9.0
    """
    if products < 6:
        raise MeasurementError(f"Hutch++ needs at least 6 products, not {products}.")
    if operator.size <= products:
        return _exact_moments(operator, {}).trace
    generator = torch.Generator().manual_seed(seed)
    third = products // 3
    q, rounding = _sketch(operator, third, generator)
    exact = math.fsum(dot(row, operator(row)) for row in q)
    terms = []
    for _ in range(third):
        rest = orthogonalised(random_signs(1, operator, generator), q)[0][0]
        terms.append(dot(rest, operator(rest)))
    remainder = mean_of(terms)
    return rounding.in_trace(Estimate(exact + remainder.value, remainder.standard_error))


def _sketch(operator: SymmetricOperator, count: int, generator: torch.Generator) -> tuple[Tensor, _Rounding]:
    """Orthonormal rows (count, p) whose span has A S for `count` columns S of random signs, one at a time."""
    q = torch.empty(count, operator.size, dtype=operator.torch_dtype, device=operator.device)
    for m in range(count):
        signs = random_signs(1, operator, generator)
        image = operator(signs.T).T
        if m == 0:
            rounding = _Rounding.of(operator, signs[0], image[0])
        w, length = orthogonalised(image, q[:m])[0], norm(image[0])
        while norm(w[0]) <= rounding_of(length, w.dtype):  # it lies in the span
            signs = random_signs(1, operator, generator)
            w, length = orthogonalised(signs, q[:m])[0], norm(signs[0])  # no longer in units of the matrix
        q[m] = orthogonalised(w / norm(w[0]), q[:m])[0][0]
        q[m] /= norm(q[m])
    return q, rounding


def random_signs(count: int, operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """Rows (count, p) of +1 and -1, the same on every device for a given CPU generator."""
    signs = torch.randint(0, 2, (count, operator.size), generator=generator, dtype=torch.int8)
    return (2 * signs.to(operator.device) - 1).to(operator.torch_dtype)  # a quarter of the bytes travels


def mean_of(values: list[float]) -> Estimate:
    """The mean and its standard error by Student's distribution (see the module), infinite for a single value."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return Estimate(mean, math.inf)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, float(stats.t.ppf(0.975, count - 1)) / _NORMAL * math.sqrt(variance / count))


def _root(square: Estimate) -> Estimate:
    """The root of an estimated square; its error to first order."""
    root = math.sqrt(square.value)
    return Estimate(root, square.standard_error / (2 * root) if root else 0.0)
