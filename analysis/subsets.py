"""How the top of the spectrum changes with the data: disjoint subsets, mini-batches, the clients of a federation.

The Hessian of a mean over samples is the mean of the samples' Hessians, and lambda_max is convex. So for parts k with
weights p_k,  lambda_max(sum_k p_k H_k) <= sum_k p_k lambda_max(H_k):  a mean of the parts' top eigenvalues never is the
whole's, but bounds it from above.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from analysis.batches import regrouped
from analysis.eigenpairs import PROBABILITY, Eigenpairs
from analysis.eigenvalue import Eigenvalue, listed
from analysis.errors import MeasurementError, UncountedError
from analysis.lanczos import lanczos
from analysis.operators import Matrix, Product, SymmetricOperator, curvature_matrix, hessian
from analysis.problem import Problem


@dataclass(frozen=True)
class Spread:
    """Top eigenvalues over disjoint parts of the samples, each as if it were all of them."""

    values: tuple[Eigenvalue, ...]  # one per part
    samples: int  # in the smallest part
    mean: float  # by the parts' weights in L
    deviation: float  # standard deviation over the parts
    standard_error: float  # of lambda_max on all samples together: deviation / sqrt(parts) where parts are equal


def sampling_spread(
    problem: Problem,
    parts: int = 4,
    *,
    tol: float = 1e-2,
    max_iter: int = 200,
    start: Tensor | None = None,
    seed: int = 0,
    matrix: Matrix = "hessian",
) -> Spread:
    """How much lambda_max moves between `parts` disjoint subsets of the problem's samples.

    Of a loss that is a sum, a part's eigenvalue is scaled to all samples. The mean over the parts lies above lambda_max
    of all samples (the module says why), by about the square of the spread. `start` (p, m), e.g. the eigenvector of all
    samples, saves products. Together the parts cost what one run on all costs.

    >>> import torch
    >>> from analysis.problem import make_problem
    >>> from analysis.subsets import sampling_spread
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> problem = make_problem(model, "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 2))
    >>> spread = sampling_spread(problem, parts=4)
    >>> len(spread.values), spread.samples, spread.standard_error > 0
    (4, 5, True)
    """
    if not 2 <= parts <= problem.samples:
        raise MeasurementError(
            f"Cannot split {problem.samples} samples into {parts} parts; use 2 to {problem.samples} parts."
        )
    pieces = [problem.part(index, parts) for index in range(parts)]
    sizes = [piece.normaliser if piece.reduction == "mean" else float(piece.samples) for piece in pieces]
    shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    values: list[Eigenvalue] = []
    for piece, share in zip(pieces, shares.tolist(), strict=True):
        pairs = lanczos(curvature_matrix(piece, matrix), tol=tol, max_iter=max_iter, start=start, seed=seed)
        (value,) = listed(pairs)
        values.append(_scaled(value, 1 / share) if piece.reduction == "sum" else value)
    numbers = torch.tensor([value.value for value in values], dtype=torch.float64)
    mean = (shares @ numbers).item()
    squares = (numbers - mean).square() * parts / (parts - 1)
    return Spread(
        values=tuple(values),
        samples=min(piece.samples for piece in pieces),
        mean=mean,
        deviation=(shares @ squares).sqrt().item(),
        standard_error=(shares.square() @ squares).sqrt().item(),
    )


def _scaled(value: Eigenvalue, factor: float) -> Eigenvalue:
    return replace(value, value=factor * value.value, residual=factor * value.residual, error=factor * value.error)


@dataclass(frozen=True)
class BatchSpectra:
    """The top k eigenvalues of every mini-batch's own loss."""

    values: Tensor  # (batches, k) float64
    residuals: Tensor  # (batches, k) float64
    converged: Tensor  # (batches, k) bool
    missed: float  # as for single eigenvalues, the largest over the batches
    batch_size: int
    products: int  # each with the Hessian of one batch


def batch_spectra(
    problem: Problem,
    batch_size: int,
    k: int = 1,
    *,
    tol: float = 1e-2,
    max_iter: int = 200,
    start: Tensor | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> BatchSpectra:
    """The distribution of the top k eigenvalues over the mini-batches of the data ("max eigenvalue spectrum").

    A last batch smaller than `batch_size` is left out, and so, with a warning, is one of which no target counts, which
    has no mean; raises `UncountedError` where that holds for all. `progress` is told the batches done and their number.

    >>> import torch
    >>> from analysis.problem import make_problem
    >>> from analysis.subsets import batch_spectra
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> problem = make_problem(model, "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 2))
    >>> tuple(batch_spectra(problem, batch_size=5, k=2).values.shape)
    (4, 2)
    """
    require_batches(problem, batch_size)
    found: list[Eigenpairs] = []
    uncounted: list[int] = []
    count = problem.samples // batch_size
    for index, batch in enumerate(regrouped(problem.data, batch_size)):
        try:
            own = problem.on([batch])
        except UncountedError:
            uncounted.append(index + 1)
            continue
        found.append(lanczos(hessian(own), k, tol=tol, max_iter=max_iter, start=start, seed=seed))
        if progress:
            progress(index + 1, count)
    say_uncounted(uncounted, count, batch_size)
    return BatchSpectra(
        values=torch.stack([pairs.values for pairs in found]),
        residuals=torch.stack([pairs.residuals for pairs in found]),
        converged=torch.stack([pairs.converged for pairs in found]),
        missed=max(pairs.missed for pairs in found),
        batch_size=batch_size,
        products=sum(pairs.products for pairs in found),
    )


def say_uncounted(uncounted: Sequence[int], count: int, batch_size: int) -> None:
    """Warn of the batches, by their places from 1, that were left out of `count`; `UncountedError` if all were."""
    if len(uncounted) == count:
        raise UncountedError(f"None of the {count} batches of {batch_size} samples has a target that counts.")
    if uncounted:
        named = ", ".join(map(str, uncounted))
        warnings.warn(f"Left out, because none of their targets count: batches {named} of {count}.", stacklevel=3)


def require_batches(problem: Problem, batch_size: int) -> None:
    """Raise `MeasurementError` where there is no batch of this size, or where no process has a whole one."""
    if not 1 <= batch_size <= problem.samples:
        raise MeasurementError(
            f"The batch size must lie between 1 and the {problem.samples} samples, not {batch_size}."
        )
    if problem.distributed:
        raise MeasurementError("Spectra of single batches are computed in one process; run them without torchrun.")


@dataclass(frozen=True)
class ClientSpectra:
    """Statement F: lambda_max(sum_k p_k H_k) <= sum_k p_k lambda_max(H_k)."""

    clients: Mapping[str, tuple[Eigenvalue, ...]]  # top k of each client's own loss
    weights: Mapping[str, float]  # p_k, sum one
    whole: tuple[Eigenvalue, ...]  # top k of the weighted sum
    mean: float  # sum_k p_k lambda_max(H_k)
    mean_error: float  # sum_k p_k residual_k
    mean_reach: float  # by how much the true mean may lie above, for what the searches did not exclude
    products: int  # those with the weighted sum, and each client's, which runs over that client's samples only

    @property
    def slack(self) -> float:
        """Right side minus left side of F, which is not negative but for the errors of both."""
        return self.mean - self.whole[0].value

    @property
    def holds(self) -> bool | None:
        """Whether F holds within the errors of both sides; None where that hangs on what a search did not exclude."""
        errors = self.mean_error + self.whole[0].residual
        if self.slack >= -errors:
            return True if self.whole[0].missed <= PROBABILITY else None
        return None if self.slack + self.mean_reach >= -errors else False


def client_spectra(
    problems: Mapping[str, Problem],
    weights: Mapping[str, float] | None = None,
    k: int = 1,
    *,
    tol: float = 1e-3,
    max_iter: int = 200,
    seed: int = 0,
    progress: Callable[[str, int, float], None] | None = None,
) -> ClientSpectra:
    """Top eigenvalues of each client's loss at the same parameters, and of their weighted sum.

    `problems` are one model on each client's data (`problem.on`); `weights` default to their shares of the mean
    over all. `progress` is called with a client's name (or "" for the sum), its products so far and its worst relative
    residual.

    >>> import torch
    >>> from analysis.problem import make_problem
    >>> from analysis.subsets import client_spectra
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> problem = make_problem(model, "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 2))
    >>> clients = {str(i): problem.part(i, 2) for i in range(2)}
    >>> client_spectra(clients).holds  # the eigenvalue of the mean is at most the mean of the eigenvalues
    True
    """
    if not problems:
        raise MeasurementError("No clients are given; name at least one.")
    shares = {name: p.normaliser if p.reduction == "mean" else float(p.samples) for name, p in problems.items()}
    raw = shares if weights is None else dict(weights)
    if set(raw) != set(problems) or min(raw.values()) < 0 or sum(raw.values()) <= 0:
        raise MeasurementError("Every client needs a weight that is not negative, and some weight must be positive.")
    share = {name: weight / sum(raw.values()) for name, weight in raw.items()}

    def top(operator: SymmetricOperator, name: str, start: Tensor | None) -> Eigenpairs:
        told = None if progress is None else lambda products, residual: progress(name, products, residual)
        return lanczos(operator, k, tol=tol, max_iter=max_iter, start=start, seed=seed, progress=told)

    whole = top(_weighted_sum(problems, share), "", None)
    found = {name: top(hessian(problem), name, whole.vectors) for name, problem in problems.items()}
    clients = {name: listed(pairs) for name, pairs in found.items()}
    return ClientSpectra(
        clients=clients,
        weights=share,
        whole=listed(whole),
        mean=sum(share[name] * values[0].value for name, values in clients.items()),
        mean_error=sum(share[name] * values[0].residual for name, values in clients.items()),
        mean_reach=sum(share[name] * values[0].reach(tol) for name, values in clients.items() if share[name]),
        products=whole.products + sum(pairs.products for pairs in found.values()),
    )


def _weighted_sum(problems: Mapping[str, Problem], weights: Mapping[str, float]) -> SymmetricOperator:
    """sum_k weights_k H_k, all clients sharing one memory budget."""
    share = min(problem.cached_samples for problem in problems.values()) // len(problems)
    parts = [(weights[name], hessian(replace(problem, cached_samples=share))) for name, problem in problems.items()]
    one = parts[0][1]

    def summed(rows: Tensor, products: Iterable[tuple[float, Product | None]]) -> Tensor:
        total = torch.zeros_like(rows, dtype=torch.float64)
        for weight, product in products:
            if product:
                total += weight * product(rows)
        return total

    def product(rows: Tensor) -> Tensor:
        return summed(rows, ((weight, operator.rows) for weight, operator in parts)).to(rows.dtype)

    def exact(rows: Tensor) -> Tensor:
        return summed(rows, ((weight, operator.exact) for weight, operator in parts))

    def lost() -> float:
        """eps over the mean of 1 - p, of which each client's is eps over its own."""
        each = [(weight, operator.lost) for weight, operator in parts]
        return 1 / sum(weight / own for weight, own in each) if min(own for _, own in each) > 0 else 0.0

    in_double = exact if one.torch_dtype != torch.float64 else None
    return SymmetricOperator(one.size, one.torch_dtype, one.device, product, exact=in_double, room=one.room, lost=lost)
