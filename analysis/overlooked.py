"""Whether a search by Lanczos overlooked an eigenvalue: how many can lie beyond the wanted ones at most.

Let Q be rows that were found, Ritz vectors of A with values theta_i and residuals r_i, and C the rest, A on what is
orthogonal to Q. If all eigenvalues of C are below c, and c < x, then A has no more eigenvalues above x than
diag(theta) + R^T R / (x - c) has: by Haynsworth's inertia additivity (1968), with E = R, it has as many above x as C
and diag(theta) + E^T (x - C)^-1 E together. So where residuals are small, what remains is a bound on C.

That comes from a standard normal z orthogonal to Q, drawn when Q stands. After d steps of Lanczos on C with Ritz values
t_1, ..., t_d and the remainder w, for every eigenpair (c, e) of C

    |z| beta_1 ... beta_d = | prod_i (C - t_i) z |  >=  | prod_i (c - t_i) | |e . z|

because the remainders' lengths beta_i make up the norm of the monic polynomial with the Ritz values as its roots
(Parlett, The Symmetric Eigenvalue Problem, chapter 12). e . z is standard normal, so it is below epsilon with
probability epsilon sqrt(2 / pi) at most: where the left side over the product is epsilon at c, no eigenvalue of C is
above c but with that probability. (The same argument for power iteration: Dixon 1983; for the first Ritz value, in
advance of the run: Kuczynski and Wozniakowski 1992.) `overlooked` makes these steps beside a finished search; `Chain`
reads the same inequality off the search itself, with A in place of C.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from analysis.eigenpairs import rounding
from analysis.vectors import norm, orthogonalised, random_rows, require_finite, rotate

BEYOND = 2.0
"""Tolerances by which an eigenvalue lies beyond the wanted ones where it is excluded."""

BASIS, FEWEST = 40, 8
"""Vectors that a search holds where memory does not matter, and those without which it does not get on."""

_HALVINGS = 20  # of an interval as long as the residuals, in which an eigenvalue's bound is sought
_CHEAP = 1 << 28  # bytes that a look may take for vectors of its own, so that it lets none go
_PLENTY = 20  # vectors with which it gets on well otherwise
_SHARES = 8  # in which Ritz vectors beside the wanted ones are tried
_GRID = 50  # places where the border of C's spectrum may be

Limit = tuple[int, float]
"""(1, x) is crossed by eigenvalues above x, (-1, x) by those of -A above x."""


@dataclass(frozen=True)
class Verdict:
    """What a look came to."""

    crossed: bool | None  # whether there are more eigenvalues beyond a limit than were seen; None: not known
    products: int
    in_place: bool  # whether it wrote over Ritz vectors that it did not leave out
    beyond: tuple[float, ...] = ()  # where nothing crossed: what C (or -C) has no eigenvalue above, for every limit


@dataclass(frozen=True)
class Seen:
    """Ritz vectors that a search has found, the wanted ones first."""

    store: Tensor  # (a, p), of which the first m rows are the Ritz vectors, orthonormal, and a look may use the others
    values: Tensor  # (m,) float64, theta
    coupling: Tensor  # (m, m) float64, R^T R: on its diagonal the squared residuals

    @property
    def rows(self) -> Tensor:
        """The Ritz vectors, (m, p)."""
        return self.store[: len(self.values)]

    def accounts_for(self, sign: int, at: float, beyond: float) -> bool:
        """Whether A has no more eigenvalues above `at` than were seen, if C has none above `beyond`.

        With a negative `sign`, that is said of -A and -C.
        """
        if beyond >= at:
            return False
        values = sign * self.values
        most = torch.linalg.eigvalsh(torch.diag(values) + self.coupling / (at - beyond))
        return int((most > at).sum()) == int((values > at).sum())

    def reach(self, limits: Sequence[Limit], beyond: Sequence[float], k: int) -> Tensor:
        """By how much eigenvalues lie farther out than the first k values, at most, if C has none `beyond`; (k,).

        The n-th largest Ritz value is not above the n-th largest eigenvalue (Cauchy), which is below any x that has
        fewer than n eigenvalues above it by the count of `accounts_for`; infinite where C comes too close to tell.
        """
        found = torch.full((k,), math.inf, dtype=torch.float64, device=self.values.device)
        norm_r = max(0.0, torch.linalg.eigvalsh(self.coupling)[-1].item()) ** 0.5
        for (sign, _), c in zip(limits, beyond, strict=True):
            values = sign * self.values
            for i in range(k):
                low, high = values[i].item(), values[i].item() + norm_r
                rank = int((values > low).sum())  # of those farther out
                if low <= c:
                    continue
                for _ in range(_HALVINGS):
                    x = (low + high) / 2
                    most = torch.linalg.eigvalsh(torch.diag(values) + self.coupling / (x - c))
                    low, high = (low, x) if int((most > x).sum()) <= rank else (x, high)
                found[i] = min(found[i].item(), high - values[i].item())
        return found

    def first(self, m: int) -> "Seen":
        """The first m alone, the others left to C."""
        return Seen(self.store, self.values[:m], self.coupling[:m, :m])

    def settled(self, limits: Sequence[Limit], k: int, most: int) -> "Seen":
        """The first k and as many of those that follow, up to `most`, as have small enough residuals, for `limits`.

        The more of them, the farther C lies from the limits, and the sooner that is seen; but what is far from any
        eigenvector leaves no room for C at all. Room is asked for as far as half the way to the next Ritz value.
        """
        others = min(len(self.values), max(k, most)) - k
        nexts = [(sign * self.values[k:]).max().item() for sign, _ in limits] if others else []
        for share in range(_SHARES, 0, -1) if others > 0 else ():
            part = self.first(k + math.ceil(others * share / _SHARES))
            if all(part.accounts_for(*limit, (limit[1] + x) / 2) for limit, x in zip(limits, nexts, strict=True)):
                return part
        return self.first(k)


def limits_of(
    borders: Sequence[tuple[int, float]], tol: float, scale: float, dtype: torch.dtype, vanishing: float = 0.0
) -> tuple[Limit, ...]:
    """Beyond a border (1, x) is what is larger than x by more than `BEYOND` `tol` |x|; beyond (-1, x) what is smaller.

    And by more than rounding in products with a matrix of norm `scale`; at a lower border, than `vanishing`.
    """
    slacks = [slack_at(x, BEYOND * tol, max(abs(x), scale), dtype) for _, x in borders]
    return tuple(
        (sign, sign * x + max(slack, vanishing if sign < 0 else 0.0))
        for (sign, x), slack in zip(borders, slacks, strict=True)
    )


def overlooked(
    seen: Seen,
    limits: Sequence[Limit],
    probability: float,
    max_products: int,
    room: int | None,
    generator: torch.Generator,
) -> Generator[Tensor, Tensor, Verdict]:
    """Whether A has more eigenvalues beyond one of the `limits` than were seen.

    That there are none is wrong with `probability` at most; nothing is said where `max_products` were not enough, or C
    comes too close to a limit for the residuals that there are. Like an `Iteration` it yields rows (1, p) and is sent
    their products with A. `room` is the number of vectors held at once, those of `seen` among them (None: as many
    beside them as a search holds, or as are cheap); what no longer fits is let go, as in a restart that keeps the Ritz
    vectors nearest to the limits.
    """
    basis, free = seen.rows, seen.store[len(seen.rows) :]
    size = basis.shape[1]
    target = math.log(probability / len(limits) * math.sqrt(math.pi / 2))
    most = min(size - len(basis), max_products)
    many = max(BASIS, _CHEAP // (size * basis.itemsize)) if room is None else room - len(seen.store)
    rows = min(most, max(FEWEST, many))
    cheap = rows * size * basis.itemsize <= _CHEAP
    plenty = min(_PLENTY if room is None else FEWEST, most)
    own = basis.new_empty(rows, size) if cheap or len(free) < plenty else free  # grown from z
    verdict = partial(Verdict, in_place=own is free)
    T, let_go = torch.zeros(0, 0, dtype=torch.float64, device=basis.device), seen.values[:0]
    w, log_length = orthogonalised(random_rows(1, size, basis, generator), basis)[0], 0.0
    steps = max(0, min(size - len(basis), max_products))
    for step in range(1, steps + 1):
        length = norm(w[0])
        log_length += math.log(length)
        n = len(T) + 1
        own[n - 1] = w[0] / length
        image = require_finite((yield own[n - 1 : n]))
        w, column = orthogonalised(image, own[:n])
        w = orthogonalised(w, basis)[0]  # last: what rounding left of the basis, 0 to C, would grow where C has no 0
        T = torch.cat([torch.cat([T, column[:-1]], dim=1), column.T])
        length = norm(w[0])
        # at the end C maps what z has reached to itself, and there is no more to see
        ended = n == size - len(basis) or length <= rounding(column.abs().max().item(), w.dtype)
        left = -math.inf if ended else log_length + math.log(length)
        values, s = torch.linalg.eigh(T)
        if any((sign * values).max() > at for sign, at in limits):
            return verdict(True, step)
        if not all(seen.accounts_for(sign, at, (sign * values).max().item()) for sign, at in limits):
            return verdict(None, step)
        roots = torch.cat([let_go, values])
        borders = [_border_of(sign * roots, left, at, target) for sign, at in limits]
        if all(seen.accounts_for(sign, at, c) for (sign, at), c in zip(limits, borders, strict=True)):
            return verdict(False, step, beyond=tuple(borders))
        if ended:
            return verdict(None, step)
        if n == len(own) and n < size - len(basis):
            nearest = torch.stack([at - sign * values for sign, at in limits]).min(dim=0).values.argsort()
            kept = nearest[: n // 2]
            rotate(s[:, kept].T, own[:n])
            T, let_go = torch.diag(values[kept]), torch.cat([let_go, values[nearest[n // 2 :]]])
    return verdict(False, steps, beyond=(-math.inf,) * len(limits)) if len(basis) == size else verdict(None, steps)


def _border_of(ritz: Tensor, log_length: float, at: float, target: float) -> float:
    """The least c below `at`, or else infinity, above which C (or -C) has an eigenvalue with little probability."""
    candidates = torch.linspace(ritz.max().item(), at, _GRID + 1, dtype=torch.float64, device=ritz.device)[1:]
    parts = log_length - (ritz[:, None] - candidates).abs().log().sum(0)
    return float(candidates[parts <= target].min()) if (parts <= target).any() else math.inf


def slack_at(x: float, tol: float, scale: float, dtype: torch.dtype) -> float:
    """By how much an eigenvalue must exceed x to be another one than x, in a matrix of norm `scale`."""
    return max(tol * abs(x), rounding(scale, dtype), torch.finfo(torch.float64).tiny)


def log_part(log_length: float, roots: Tensor, x: float) -> float:
    """The logarithm of |prod_i (A - t_i) z| / prod_i |x - t_i|, which bounds |e . z| for the eigenvalue x."""
    return log_length - (roots - x).abs().log().sum().item()


@dataclass
class Chain:
    """One Krylov space from a start vector q with a normal part, and what it excludes by the inequality above.

    Nothing is assumed here of e: it bounds |e . q| for every e whose eigenvalue lies beyond all Ritz values, and e . q
    is normal with standard deviation `sigma` at least. A restart that keeps some Ritz vectors goes on as the Krylov
    space of prod (A - t_i) q over the t_i let go (Sorensen 1992), so these stay roots of the polynomial.
    """

    sigma: float
    log_length: float  # of |q|, then of the polynomial's value at q
    let_go: Tensor  # (n,) float64, roots of former restarts

    def missed(self, values: Tensor, residuals: Tensor, borders: Sequence[tuple[int, float]], slack: float) -> float:
        """The probability, at most, that an eigenvalue x beyond a border by `slack` stayed unseen.

        `values` and `residuals` are all of T. The unit vector e has the part residual_i (e . w) / (|w| |x - t_i|) in
        the i-th Ritz vector, which leaves less than 1 for e . w / |w|.
        """
        if self.log_length == -math.inf:
            return 0.0
        roots, bound = torch.cat([self.let_go, values]), 0.0
        for sign, x in borders:
            at = x + sign * slack
            inside = ((residuals / (values - at)) ** 2).sum().item()
            part = log_part(self.log_length, roots, at) - math.log1p(inside) / 2 - math.log(self.sigma)
            bound += math.sqrt(2 / math.pi) * math.exp(min(part, 1.0))
        return bound

    def extended(self, length: float) -> None:
        """Take in the next remainder's length."""
        self.log_length += math.log(length) if length > 0 else -math.inf
