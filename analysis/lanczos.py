"""Thick-restart Lanczos: eigenvalues at the ends of the spectrum from as few products as a Krylov space allows.

    A Q = Q T + q beta e_m^T,    T = Q^T A Q,    T s = theta s,    y = Q s    =>    |A y - theta y| = |beta e_m^T s|

Q (orthonormal) grows by one vector, or by a block of b, per step: w = A q, w <- w - Q (Q^T w), q = w / beta. In
floating point Q loses orthogonality as soon as a pair converges (Paige 1971), and copies of found eigenvalues appear;
so every w is orthogonalised against the whole of Q, twice where the first time leaves less than half of it. When Q is
full it is replaced by its best Ritz vectors; the relation then holds as before (thick restart: Wu and Simon 2000).

T holds what was subtracted, and w what was left, so A Q^T = Q^T T + w e_m^T is an identity of the products made,
whatever became of orthogonality. A y = theta y + w (e_m^T s) is therefore known to rounding without another product.

The Krylov space of b random vectors holds min(b, multiplicity) independent eigenvectors of every eigenvalue, because b
random vectors have as many independent parts in each eigenspace. The search grows it from one vector, so that of a
repeated eigenvalue it finds one copy. For a single pair that is enough, and the search goes on until its own Krylov
space, whose start has a random part, excludes anything larger (`overlooked.Chain`). For more than one pair a second,
short recurrence then bounds what is orthogonal to Q, and with it the number of eigenvalues beyond the wanted ones
(`overlooked.overlooked`); where there may be more than were seen, the search is repeated with b = k random vectors, and
then with more if need be. A space of `max_basis` dimensions or fewer is worked through whole instead.

At the lower end eigenvalues may vanish beside the largest: no residual is small beside those, and what lies a little
below is as hard to exclude. Where the caller lets it (`vanishing`), a pair there has also converged where its
eigenvalue is at most tol |A| in magnitude, and none is excluded that lies below by less than that. With such a residual
a look may not be able to tell what is beside the pairs of the upper end; the search then asks for a smaller one.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from analysis.confirmation import confirmed
from analysis.eigenpairs import (
    PROBABILITY,
    Eigenpairs,
    Iteration,
    Progress,
    carried,
    certified,
    drive,
    is_finished,
    judged,
    relative,
    require_pairs,
    rounding,
    vanish,
)
from analysis.ends import Which, borders, of_lower_end, wanted
from analysis.errors import require_one_of
from analysis.operators import SymmetricOperator
from analysis.overlooked import BASIS, BEYOND, FEWEST, Chain, Seen, Verdict, limits_of, overlooked, slack_at
from analysis.recurrence import extend
from analysis.vectors import (
    combine,
    dots,
    mixed_row,
    norm,
    orthogonalised,
    random_rows,
    require_finite,
    rotate,
    start_rows,
)

_SEARCH = 0.8  # of the probability that something is missed is for the search itself, the rest for looks after it
_NOISE = 0.1  # of the start's length for k > 1, so that nothing is out of reach
_SMALL, _RARELY = 1000, 1e-3  # up to so many dimensions products cost nothing, and less may be missed
_LONG = 100  # vectors that are kept there, since memory costs nothing either
_BESIDE = 4  # vectors that a product and its orthogonalisation take
_MARGIN = 0.99  # of the tolerance, so that rounding does not lift the residual above it
_STRICTER = 0.1  # towards values that vanish, where a look could not tell


def lanczos(
    operator: SymmetricOperator,
    k: int = 1,
    *,
    which: Which = "largest",
    tol: float = 1e-3,
    max_iter: int = 200,
    start: Tensor | None = None,
    seed: int = 0,
    max_basis: int | None = None,
    progress: Progress | None = None,
) -> Eigenpairs:
    """k eigenpairs, min(k, p) at most: the largest, the smallest, both ends (the k // 2 smallest last) or by magnitude.

    `missed` bounds the probability that the end of the spectrum was missed (exactly 0 where the space was worked
    through whole); values and residuals are those of `operator.exact`, one product per pair, where it has that.
    `max_iter` limits the products before that to max_iter * k; `start` (p, m) is a warm start, e.g. eigenvectors of a
    nearby matrix (default: the operator's own). `max_basis` is the number of vectors between restarts, by default
    max(2 k + 20, 40), 100 at least up to 1000 dimensions, or what `operator.room` leaves: what is certified stays the
    same.

    >>> import torch
    >>> from analysis.lanczos import lanczos
    >>> from analysis.operators import matrix_operator
    >>> lanczos(matrix_operator(torch.diag(torch.tensor([5.0, 3.0, 1.0]))), k=2).values.round(decimals=4).tolist()
    [5.0, 3.0]
    """
    like = torch.empty(0, dtype=operator.torch_dtype, device=operator.device)
    start, seed = operator.beginning(start, seed)
    steps = lanczos_steps(operator.size, like, k, which, tol, max_iter, start, seed, max_basis, operator.room, progress)
    del start  # what is not held leaves room for the basis: of a large network a vector is large
    found = confirmed(drive(steps, lambda rows: operator(rows.T).T), tol, operator.exact, operator.room)
    return carried(found, operator.lost, tol)


def lanczos_steps(
    size: int,
    like: Tensor,
    k: int,
    which: Which,
    tol: float,
    max_iter: int,
    start: Tensor | None = None,
    seed: int = 0,
    max_basis: int | None = None,
    room: int | None = None,
    progress: Progress | None = None,
    vanishing: bool = False,
) -> Iteration:
    """The iteration of `lanczos`, asking for a block of products (b, p) at a time; vectors are of `like`'s kind.

    `room` is the number of vectors that may be held at once, but for those without which nothing can be found.
    `vanishing` lets values at the lower end count as zero (see the module).
    """
    require_one_of(which, Which, "which")
    k = min(require_pairs(k), size)
    generator = torch.Generator().manual_seed(seed)
    most = max(2 * k + 20, BASIS)
    few = size <= (max_basis or most)
    if max_basis is None:
        share = size if room is None else room - _BESIDE - (k - 1)  # the pairs become vectors of their own at last
        max_basis = max(k + FEWEST, min(most if size > _SMALL else max(most, _LONG), share))
    whole, lenient = few and size <= max_basis, 1.0 if vanishing else 0.0
    search = _Search(k, which, tol, max_iter * k, max_basis, whole, lenient, generator, progress)
    chain: Chain | None = None
    if k == 1:
        rows, sigma = mixed_row(size, like, start, generator)
        chain = Chain(sigma, math.log(norm(rows[0])), torch.zeros(0, dtype=torch.float64, device=like.device))
    else:
        rows = start_rows(1, size, like, start, generator, _NOISE)
    del start
    spent, spare = 0, _rarely(size) * (1 if chain is None else 1 - _SEARCH)
    former: Eigenpairs | None = None
    while True:
        left = replace(search, max_products=search.max_products - spent)
        block, steps = len(rows), _thick_restart(rows, left, chain)
        del rows
        pairs, seen, missed = yield from steps
        spent += pairs.products
        if former is not None and not pairs.finished:  # nearer to eigenpairs than what the products ended amid
            return judged(former, 1.0, spent)
        if missed <= PROBABILITY or not pairs.finished:
            return _alone(judged(pairs, missed, spent))
        limits = limits_of(borders(pairs.values, which), tol, pairs.scale, like.dtype, search.vanishing(pairs.scale))
        settled = seen.settled(limits, k, len(seen.store) if room is None else len(seen.store) - FEWEST)
        verdict = Verdict(None, 0, in_place=False)
        for part in (settled, seen.first(k) if len(settled.values) > k else seen):
            if part is seen and (verdict.in_place or len(seen.values) == k):  # nothing is left beside the wanted ones
                break
            left_over = max(0, search.max_products - spent)
            spare /= 2  # however many looks there are, what each may miss adds up to no more than promised
            verdict = yield from overlooked(part, limits, spare, left_over, room, generator)
            spent += verdict.products
            if verdict.crossed is not None:
                break
        if verdict.crossed is False:
            missed = 0.0 if len(seen.values) == size else _rarely(size)
            return _alone(judged(pairs, missed, spent, part.reach(limits, verdict.beyond, k)))
        if spent >= search.max_products:  # eigenpairs, but perhaps not the wanted ones
            return _alone(judged(pairs, 1.0, spent))
        former = _alone(pairs)
        del pairs, seen, settled, part  # and their basis, before there is another
        rows, chain = random_rows(min(size, max(k, block + 1)), size, like, generator), None
        if room is not None:  # for the former pairs
            max_basis = max(k + FEWEST, max_basis - k)
        whole = size <= min(max_basis, search.max_products - spent)
        lenient = search.lenient if verdict.crossed else _STRICTER * search.lenient
        search = replace(search, max_basis=max_basis, whole=whole, lenient=lenient)


@dataclass(frozen=True)
class _Search:
    """What is sought, and when to give up."""

    k: int
    which: Which
    tol: float
    max_products: int
    max_basis: int
    whole: bool  # go on until Q is the whole space, which is small enough to leave nothing to chance
    lenient: float  # the share of what counts as zero at the lower end that a residual there may be; 0: nothing counts
    generator: torch.Generator
    progress: Progress | None

    def vanishing(self, scale: float) -> float:
        """In a matrix of norm `scale`, the magnitude below which a value at the lower end counts as zero."""
        return self.tol * scale if self.lenient else 0.0

    def vanishing_of(self, values: Tensor, scale: float) -> Tensor:
        """Of each of the wanted values, in their order; (n,)."""
        return self.vanishing(scale) * of_lower_end(len(values), self.which).to(values)

    def finished(self, values: Tensor, residuals: Tensor, scale: float, products: int, dtype: torch.dtype) -> bool:
        """Whether k pairs are finished or the products are spent; `values`, `residuals` are those of the wanted.

        `scale` is the norm of the matrix, as far as is known.
        """
        pairs = list(zip(residuals.tolist(), values.tolist(), strict=True))
        if self.progress:
            self.progress(products, max(relative(r, x) for r, x in pairs))
        most_gone = _MARGIN * self.vanishing_of(values, scale)
        gone = (vanish(residuals, values, most_gone) & (residuals <= self.lenient * most_gone)).tolist()
        most = values.abs().max().item()
        enough = (
            not self.whole
            and len(pairs) == self.k
            and all(
                g or is_finished(r, x, most, _MARGIN * self.tol, dtype) for g, (r, x) in zip(gone, pairs, strict=True)
            )
        )
        return enough or products >= self.max_products


def _thick_restart(
    start: Tensor, search: _Search, chain: Chain | None
) -> Generator[Tensor, Tensor, tuple[Eigenpairs, Seen, float]]:
    """The pairs, the space that they were found in, and what `chain` says of others: with one, it decides the end.

    The chain ends where Q spans an invariant subspace; what lies beside that is for `overlooked` to say.
    """
    block, size = start.shape
    capacity = min(size, max(search.max_basis, search.k + 3 * block))
    basis = start.new_empty(min(size, capacity + block), size)  # Q, as rows
    T = torch.zeros(capacity, capacity, dtype=torch.float64, device=start.device)
    w, scale, products, m, missed = start, 0.0, 0, 0, 1.0  # m rows of Q have been multiplied
    del start
    while True:
        n = extend(basis, m, w, scale, search.generator)
        w = require_finite((yield basis[m:n]))
        products += n - m
        w, column = orthogonalised(w, basis[:n])
        T[:n, m:n], T[m:n, :n] = column, column.T
        m, b = n, n - m

        values, s = torch.linalg.eigh(T[:m, :m])
        scale = values.abs().max().item()
        last = s[m - b :]
        gram = dots(w, w)
        coupling, beta = last.T @ gram @ last, math.sqrt(gram[0, 0])
        residuals = coupling.diagonal().clamp(min=0).sqrt()  # |beta e_m^T s|
        want = wanted(values, search.k, search.which)
        ended = beta <= rounding(scale, w.dtype)
        if chain:
            chain.extended(beta)
            found = values[want]  # one, as long as there is a chain
            beyond = slack_at(found[-1].item(), BEYOND * search.tol, scale, w.dtype)
            slack = max(beyond, search.vanishing_of(found, scale)[-1].item())
            missed = chain.missed(values, residuals, borders(values[want], search.which), slack) / _SEARCH
        enough = search.finished(values[want], residuals[want], scale, products, w.dtype)
        if m == size:
            missed = 0.0
            break
        if enough and (chain is None or ended or missed <= _rarely(size) or products >= search.max_products):
            break
        if ended:  # what is appended to Q next has nothing to do with the start
            chain, missed = None, 1.0
        if min(m + b, size) > capacity:
            kept = wanted(values, min(search.k + capacity // 3, capacity - 2 * b), search.which)
            m = len(kept)
            if chain:
                gone = torch.ones(len(values), dtype=torch.bool, device=values.device).index_fill(0, kept, False)
                chain.let_go = torch.cat([chain.let_go, values[gone]])
            rotate(s[:, kept].T, basis[: len(s)])
            T.zero_()
            T.diagonal()[:m] = values[kept]

    order = _by_nearness(values, want, search.which)
    rotate(s[:, order].T, basis[:m])
    seen = Seen(basis, values[order], coupling[order][:, order])
    vectors = basis[: len(want)]
    images = (
        theta.to(w) * v + combine(column[None], w)[0]
        for theta, v, column in zip(values[want], vectors, last[:, want].T, strict=True)
    )
    vanishing = search.vanishing_of(values[want], scale)
    return certified(vectors, images, scale, search.tol, products, vanishing), seen, missed


def _alone(pairs: Eigenpairs) -> Eigenpairs:
    """The pairs with vectors of their own, which keep no basis."""
    return replace(pairs, vectors=pairs.vectors.clone())


def _by_nearness(values: Tensor, want: Tensor, which: Which) -> Tensor:
    """Positions of all `values`, the wanted ones first, then those nearest to a border."""
    far = torch.stack([(x - values).abs() for _, x in borders(values[want], which)]).amin(dim=0)
    return torch.cat([want, far.index_fill(0, want, -1.0).argsort()[len(want) :]])


def _rarely(size: int) -> float:
    """The probability with which something may be missed."""
    return _RARELY if size <= _SMALL else PROBABILITY
