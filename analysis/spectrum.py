"""Eigenvalues at the ends of the spectrum, of the whole matrix and of every layer's block, with their error bounds."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from analysis.activations import ActivationNorms, ForwardPass, forward_pass
from analysis.confirmation import confirmed, in_float64
from analysis.eigenpairs import Eigenpairs, Iteration, Progress, carried, drive, drive_together
from analysis.eigenvalue import Eigenvalue, listed
from analysis.errors import MeasurementError, require_one_of
from analysis.lanczos import lanczos_steps
from analysis.layer_blocks import LayerBlocks
from analysis.layers import Group, find_groups
from analysis.memory import vectors_that_fit
from analysis.operators import Matrix, SymmetricOperator, curvature_matrix
from analysis.power import power_steps
from analysis.problem import Problem
from analysis.pyhessian_backend import pyhessian_operator
from analysis.saturation import lost_share

Method = Literal["lanczos", "power"]
Backend = Literal["flatlab", "pyhessian"]
End = Literal["largest", "smallest", "both"]


@dataclass(frozen=True)
class LayerSpectrum:
    """The top of one layer's block (weight and bias together), or of that of a group of layers."""

    name: str
    parameters: int
    eigenvalues: tuple[Eigenvalue, ...]
    input_norm2: float  # mean over samples of |a|^2 entering; nan where it does not run as a module, and for groups
    output_norm2: float  # the same after the nonlinearity that follows, before pooling
    products: int


@dataclass(frozen=True)
class EigsReport:
    """What `eigs` found: the most extreme eigenvalue first, and of both ends the largest before the smallest.

    By power iteration the largest magnitude comes first.
    """

    eigenvalues: tuple[Eigenvalue, ...]  # of the whole matrix, k or of both ends 2 k
    vectors: Tensor  # (p, k or 2 k) of the whole matrix
    layers: tuple[LayerSpectrum, ...]
    samples: int
    loss: float  # L
    method: Method
    backend: Backend
    products: int  # with a vector, those with layer blocks included
    seconds: float

    @property
    def converged(self) -> bool:
        """Whether every eigenvalue met the tolerance."""
        everything = [*self.eigenvalues, *(value for layer in self.layers for value in layer.eigenvalues)]
        return all(value.converged for value in everything)


ReportProgress = Callable[[str, int, float], None]
"""Called with "" (the whole matrix) or a layer's name, its products so far and its worst relative residual."""


def eigs(
    problem: Problem,
    k: int = 1,
    *,
    tol: float = 1e-3,
    max_iter: int = 200,
    method: Method = "lanczos",
    layers: Sequence[str] | None = None,
    group_by: str | None = None,
    backend: Backend = "flatlab",
    start: Tensor | None = None,
    seed: int = 0,
    which: End = "largest",
    matrix: Matrix = "hessian",
    progress: ReportProgress | None = None,
) -> EigsReport:
    """k eigenvalues of the Hessian of L, or of another `matrix`, and of each layer's block, each with its residual.

    "lanczos" finds the largest, the smallest, or k at both ends (`which`), "power" the largest in magnitude; both stop
    where |H v - lambda v| <= tol |lambda|, at the lower end also where lambda is zero to within tol |H|, or after
    max_iter * k products, and never raise for want of convergence. `layers` names the layers (None: all, empty: none),
    `group_by` puts them together ("block", or patterns: `analysis.layers.find_groups`), which makes the diagonal block
    of each group one matrix; `start` (p, m) is a warm start for the whole matrix. `backend="pyhessian"` takes every
    product with the Hessian from PyHessian. Raises `MeasurementError` for what a method, a backend or a loss does not
    have.

    >>> import torch
    >>> from analysis.problem import make_problem
    >>> from analysis.spectrum import eigs
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> problem = make_problem(model, "mse", (torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1)))
    >>> report = eigs(problem, k=2)
    >>> [round(pair.value, 6) for pair in report.eigenvalues], report.eigenvalues[0].converged
    ([4.0, 1.0], True)
    >>> report.layers[0].name, round(report.layers[0].eigenvalues[0].value, 6)
    ('', 4.0)
    """
    for word, form, name in (
        (which, End, "which"), (method, Method, "method"), (backend, Backend, "backend"), (matrix, Matrix, "matrix")
    ):  # fmt: skip
        require_one_of(word, form, name)
    if (backend == "pyhessian" and matrix != "hessian") or (method == "power" and which != "largest"):
        raise MeasurementError(
            "PyHessian multiplies by the Hessian alone, and power iteration finds the largest magnitude alone: leave "
            "backend and method out for other matrices and the smallest eigenvalues."
        )
    began = time.perf_counter()
    groups = find_groups(problem, layers, group_by)  # before the whole network takes its time
    count = 2 * k if which == "both" else k
    search = _Search(count, which, tol, max_iter, method, seed, vectors_that_fit(problem), progress)
    operator = pyhessian_operator(problem) if backend == "pyhessian" else curvature_matrix(problem, matrix)
    whole = search.of(operator, problem, "", start)
    del operator  # and its graphs, before those of the layers
    found = _layer_eigenpairs(problem, search, layers, backend, matrix, group_by)
    forward = forward_pass(problem)
    norms = {group.name: _norms(forward, group) for group in groups}
    lost = lost_share(problem)
    return EigsReport(
        eigenvalues=listed(carried(whole, lost, tol)),
        vectors=whole.vectors,
        layers=tuple(
            LayerSpectrum(
                name=name,
                parameters=len(pairs.vectors),
                eigenvalues=listed(carried(pairs, lost, tol)),
                input_norm2=norms[name].input_norm2,
                output_norm2=norms[name].output_norm2,
                products=pairs.products,
            )
            for name, pairs in found.items()
        ),
        samples=problem.samples,
        loss=forward.loss,
        method=method,
        backend=backend,
        products=whole.products + sum(pairs.products for pairs in found.values()),
        seconds=time.perf_counter() - began,
    )


@dataclass(frozen=True)
class _Search:
    """What is sought in every block, by which method."""

    k: int
    which: End
    tol: float
    max_iter: int
    method: Method
    seed: int
    room: int  # for vectors of all parameters, or as many of every layer's at the same time
    progress: ReportProgress | None

    def of(self, operator: SymmetricOperator, problem: Problem, name: str, start: Tensor | None = None) -> Eigenpairs:
        """The pairs of one matrix, from its own start unless one is given."""
        start, noise = operator.beginning(start, self.seed)
        steps = replace(self, seed=noise).steps(problem, name, start)
        return confirmed(drive(steps, operator.rows), self.tol, operator.exact, self.room)

    def steps(self, problem: Problem, name: str, start: Tensor | None = None) -> Iteration:
        """The iteration for one block, which reports under `name`."""
        told: Progress | None = None if self.progress is None else partial(self.progress, name)
        like = problem.point().new_empty(0)
        if self.method == "power":
            return power_steps(problem.size, like, self.k, self.tol, self.max_iter, start, self.seed, self.room, told)
        return lanczos_steps(
            problem.size,
            like,
            self.k,
            self.which,
            self.tol,
            self.max_iter,
            start,
            self.seed,
            room=self.room,
            progress=told,
            vanishing=True,
        )


def layer_eigenpairs(
    problem: Problem,
    k: int = 1,
    *,
    tol: float = 1e-3,
    max_iter: int = 200,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    progress: ReportProgress | None = None,
) -> dict[str, Eigenpairs]:
    """The top k eigenpairs of every layer's block, or of the layers named, all found together by Lanczos.

    >>> import torch
    >>> from analysis.lanczos import lanczos
    >>> from analysis.operators import hessian
    >>> from analysis.problem import make_problem
    >>> from analysis.spectrum import layer_eigenpairs
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> problem = make_problem(model, "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 2))
    >>> layers = layer_eigenpairs(problem, k=2)
    >>> {name: tuple(pairs.vectors.shape) for name, pairs in layers.items()}
    {'0': (9, 2), '2': (8, 2)}
    >>> bool(max(pairs.values[0] for pairs in layers.values()) <= lanczos(hessian(problem)).values[0] + 1e-6)
    True
    """
    search = _Search(k, "largest", tol, max_iter, "lanczos", seed, vectors_that_fit(problem), progress)
    found, lost = _layer_eigenpairs(problem, search, layers, "flatlab", "hessian"), lost_share(problem)
    return {name: carried(pairs, lost, tol) for name, pairs in found.items()}


def _norms(forward: ForwardPass, group: Group) -> ActivationNorms:
    """Of a layer; a group of several has no one input and output."""
    if len(group.layers) > 1:
        return ActivationNorms(math.nan, math.nan)
    return forward.layers[group.layers[0].name]


def _layer_eigenpairs(
    problem: Problem,
    search: _Search,
    layers: Sequence[str] | None,
    backend: Backend,
    matrix: Matrix,
    group_by: str | None = None,
) -> dict[str, Eigenpairs]:
    parts = {group.name: problem.select(group.parameters) for group in find_groups(problem, layers, group_by)}
    if matrix != "hessian":
        return {name: search.of(curvature_matrix(part, matrix), part, name) for name, part in parts.items()}
    blocks = LayerBlocks(problem, layers, group_by)
    starts = blocks.starts()
    iterations = {name: search.steps(part, name, starts[name]) for name, part in parts.items()}
    if backend == "pyhessian":
        return {name: drive(iterations[name], pyhessian_operator(part).rows) for name, part in parts.items()}
    found = drive_together(iterations, blocks)
    if problem.dtype == torch.float64 or not found:
        return found
    del blocks  # and its graphs

    @cache
    def in_double() -> LayerBlocks:
        """Made where `confirmed` expects an error: finding out how to cut the network runs it."""
        return LayerBlocks(in_float64(problem), layers, group_by)

    def product(name: str) -> Callable[[Tensor], Tensor]:
        return lambda rows: in_double()({name: rows})[name]

    return {name: confirmed(pairs, search.tol, product(name), search.room) for name, pairs in found.items()}
