"""Symmetric matrices known only by their products: Hessian, Gauss-Newton, Fisher and blocks.

Each is at once a function of torch tensors, (p,) -> (p,) and (p, k) -> (p, k), and a
`scipy.sparse.linalg.LinearOperator`, on which `eigsh` and `lobpcg` run unchanged.
"""

from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import Literal, overload

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from analysis.chunk_graphs import GradientGraph, OutputGraph, ProductGraph
from analysis.confirmation import in_float64
from analysis.distributed import summed
from analysis.errors import MeasurementError, require_one_of
from analysis.graphs import GraphCache
from analysis.ieee import ieee
from analysis.memory import vectors_that_fit
from analysis.objective import loss_and_gradient
from analysis.output_curvature import of_the_loss, of_the_prediction, of_the_slopes
from analysis.output_refusals import refuse_flat, require_rows
from analysis.parametric_loss import Chunk
from analysis.problem import Problem
from analysis.saturation import lost_share
from analysis.vectors import seed_beside

Product = Callable[[Tensor], Tensor]
"""(b, p) -> (b, p): each row times the matrix."""


class SymmetricOperator(LinearOperator):  # type: ignore[misc]
    """A symmetric p x p matrix given by its product with a block of row vectors; counts the vectors multiplied.

    `start` makes vectors (p, m) rich in the leading eigenvectors, where such are known: iterations start from them.
    `exact` is the product in float64 of rows of any precision, where `product` has less and float64 can be had; `room`
    the number of vectors that iterations may hold at once (None: any). `lost` says which share of the matrix rounding
    takes even in float64.
    """

    def __init__(
        self,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
        product: Product,
        start: Callable[[], Tensor] | None = None,
        exact: Product | None = None,
        room: int | None = None,
        lost: Callable[[], float] = lambda: 0.0,
    ) -> None:
        super().__init__(np.dtype(str(dtype).removeprefix("torch.")), (size, size))
        self.size = size
        self.torch_dtype = dtype
        self.device = device
        self.rows = product
        self.start = start
        self.exact = exact
        self.room = room
        self.products = 0
        self._lost = lost

    @cached_property
    def lost(self) -> float:
        """The share of the matrix that rounding takes even in float64, which no residual shows."""
        return self._lost()

    def beginning(self, start: Tensor | None, seed: int) -> tuple[Tensor | None, int]:
        """Vectors to start from, `start` (p, m) or else the operator's own, and a seed of noise independent of them."""
        if start is not None:
            return start, seed_beside(start, seed)
        return (None if self.start is None else self.start()), seed

    @overload
    def __call__(self, vectors: Tensor) -> Tensor: ...

    @overload
    def __call__(self, vectors: np.ndarray) -> np.ndarray: ...

    @ieee()
    def __call__(self, vectors: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Multiply (p,) or (p, k); the result has the same shape and kind, and the operator's dtype."""
        if not isinstance(vectors, Tensor):
            return np.asarray(self.dot(vectors))
        if vectors.dim() not in (1, 2) or vectors.shape[0] != self.size:
            raise ValueError(
                f"expected a tensor of shape ({self.size},) or ({self.size}, k), not {tuple(vectors.shape)}"
            )
        rows = vectors.reshape(self.size, -1).T.to(device=self.device, dtype=self.torch_dtype)
        self.products += len(rows)
        return self.rows(rows).T.reshape(vectors.shape)

    def _matmat(self, vectors: np.ndarray) -> np.ndarray:
        return self(torch.from_numpy(np.ascontiguousarray(vectors))).cpu().numpy()

    def _matvec(self, vector: np.ndarray) -> np.ndarray:
        return self._matmat(vector.reshape(self.size, 1)).reshape(vector.shape)

    def _adjoint(self) -> "SymmetricOperator":
        return self


def matrix_operator(matrix: Tensor) -> SymmetricOperator:
    """A symmetric matrix (p, p) as an operator.

    >>> import torch
    >>> from analysis.operators import matrix_operator
    >>> matrix_operator(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))(torch.tensor([1.0, 0.0])).tolist()
    [2.0, 1.0]
    """
    return SymmetricOperator(len(matrix), matrix.dtype, matrix.device, lambda rows: rows @ matrix)


def hessian(problem: Problem) -> SymmetricOperator:
    """d^2 L / d theta^2, multiplied by double backward: H v = d/dtheta (g . v), g = dL/dtheta (Pearlmutter 1994).

    >>> import torch
    >>> from analysis.operators import hessian
    >>> from analysis.problem import make_problem
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> problem = make_problem(model, "mse", (torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1)))
    >>> hessian(problem)(torch.eye(2)).tolist()
    [[4.0, 0.0], [0.0, 1.0]]
    """
    return _operator(problem, GradientGraph.build)


def gauss_newton(problem: Problem) -> SymmetricOperator:
    """sum_n J_n^T (d^2 loss_n / dz^2) J_n with J = dz/dtheta, z the model's outputs (Schraudolph 2002).

    Positive semidefinite for a loss that is convex in z, and the Hessian itself where z is locally linear in theta.

    >>> import torch
    >>> from analysis.operators import gauss_newton
    >>> from analysis.problem import make_problem
    >>> problem = make_problem(torch.nn.Linear(2, 3), "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 3))
    >>> bool(torch.linalg.eigvalsh(gauss_newton(problem)(torch.eye(9))).min() > -1e-6)
    True
    """
    return _operator(problem, partial(OutputGraph.build, middle=of_the_loss))


def fisher(problem: Problem) -> SymmetricOperator:
    """1/M sum_n E_y [d log p(y | z_n) d log p(y | z_n)^T], derivatives in theta, y drawn from the model's prediction.

    The expectation is exact. It is the Gauss-Newton matrix for cross-entropy (of the next token too) and binary
    cross-entropy of logits, and half of it for the mean squared error, a Gaussian of unit variance
    (`analysis.predictive`). Raises `MeasurementError` for other losses.

    >>> import torch
    >>> from analysis.operators import fisher, hessian
    >>> from analysis.problem import make_problem
    >>> problem = make_problem(torch.nn.Linear(2, 3), "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 3))
    >>> torch.allclose(fisher(problem)(torch.eye(9)), hessian(problem)(torch.eye(9)), atol=1e-5)  # linear logits
    True
    """
    return _operator(problem, partial(OutputGraph.build, middle=of_the_prediction(problem)))


def empirical_fisher(problem: Problem) -> SymmetricOperator:
    """1/M sum_n g_n g_n^T with g_n the gradient of sample n's loss, in L = 1/M sum_n loss_n.

    M is the number of samples for cross-entropy, that of counted tokens where a sample has several (g_n adds these up),
    and that of all outputs for the mean squared error and binary cross-entropy. Raises `MeasurementError` where the
    outputs have no row for every sample.

    >>> import torch
    >>> from analysis.operators import empirical_fisher
    >>> from analysis.problem import make_problem
    >>> problem = make_problem(torch.nn.Linear(2, 3), "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 3))
    >>> bool(torch.linalg.eigvalsh(empirical_fisher(problem)(torch.eye(9))).min() > -1e-6)
    True
    """
    require_rows(problem)
    return _operator(problem, partial(OutputGraph.build, middle=of_the_slopes))


Matrix = Literal["hessian", "gauss-newton", "fisher", "empirical-fisher"]


def curvature_matrix(problem: Problem, name: Matrix) -> SymmetricOperator:
    """The matrix of this name. Raises `MeasurementError` where the loss has none that says something."""
    require_one_of(name, Matrix, "The matrix")
    if name == "gauss-newton":
        refuse_flat(problem)
    makers = {"hessian": hessian, "gauss-newton": gauss_newton, "fisher": fisher, "empirical-fisher": empirical_fisher}
    return makers[name](problem)


def block(problem: Problem, names: Iterable[str]) -> SymmetricOperator:
    """The diagonal block of the Hessian that belongs to the parameters `names`.

    Raises `MeasurementError` for names of none that is selected.

    >>> import torch
    >>> from analysis.operators import block, hessian
    >>> from analysis.problem import make_problem
    >>> problem = make_problem(torch.nn.Linear(2, 3), "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 3))
    >>> whole, part = hessian(problem), block(problem, ["weight"])
    >>> torch.allclose(part(torch.eye(6)), whole(torch.eye(9))[:6, :6], atol=1e-6)
    True
    """
    part = problem.select(names)
    if not part.parameters:
        raise MeasurementError("No parameter is named, and a block is of some.")
    return hessian(part)


def _operator(problem: Problem, build: Callable[[Problem, Chunk], ProductGraph]) -> SymmetricOperator:
    """The sum over chunks of a product, every graph serving all vectors of the block.

    Iterations start from the gradient of L, much of which lies along the leading eigenvectors of a network in training
    (Gur-Ari, Roberts and Dyer 2018); where all graphs are kept they hold it already.
    """
    graphs = GraphCache(problem, lambda chunk: build(problem, chunk))
    alone = problem.samples <= problem.chunk_size and not problem.distributed  # then there is nothing to add up
    summing = problem.dtype if alone else torch.float64

    def product(rows: Tensor) -> Tensor:
        with problem.passing():
            total = torch.zeros_like(rows, dtype=summing)
            for graph in graphs:
                for row, sum_of_chunks in zip(rows, total, strict=True):
                    problem.add_to(sum_of_chunks, graph.product(problem.split(row.to(problem.dtype))))
                del graph  # before the next one is built
        return summed(total, problem.distributed).to(problem.dtype)

    def start() -> Tensor:
        if problem.cached_samples < problem.samples:
            return loss_and_gradient(problem)[1][:, None]
        with problem.passing():
            total = torch.zeros(problem.size, dtype=torch.float64, device=problem.device)
            for graph in graphs:
                problem.add_to(total, graph.gradient())
        return summed(total, problem.distributed).to(problem.dtype)[:, None]

    def exact(rows: Tensor) -> Tensor:
        return _operator(in_float64(problem), build).rows(rows)

    in_double = exact if problem.dtype != torch.float64 else None
    return SymmetricOperator(
        problem.size,
        problem.dtype,
        problem.device,
        product,
        start,
        in_double,
        vectors_that_fit(problem),
        partial(lost_share, problem),
    )
