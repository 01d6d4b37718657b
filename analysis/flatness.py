"""Flatness measures beside the raw top eigenvalue, among them those that a rescaling of the network cannot fool.

A ReLU network computes the same function after W_l <- c W_l, b_l <- c b_l, W_{l+1} <- W_{l+1} / c, while its
eigenvalues and activation norms change at will (Dinh, Pascanu, Bengio and Bengio 2017). Invariant are, with weights
alone as blocks,

    relative flatness of layer l       |W_l|_F^2 lambda_max(H_ll),    |W_l|_F^2 tr H_ll      (after Petzka et al. 2021)
    adaptive sharpness                 max { L(theta + e) - L(theta) : |e / theta| <= rho }  (Kwon et al. 2021)

Not invariant are lambda_max, tr H, lambda_1 / lambda_5 and SAM's sharpness, max { L(theta + e) - L(theta) : |e| <= rho
} (Foret et al. 2021). Both maxima are taken, as in training, at the first-order solution, in float64 wherever the model
runs in it: near a minimum the gradient, and a difference of losses everywhere, are what float32 rounds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.confirmation import in_float64_where_it_runs
from analysis.eigenvalue import Eigenvalue, listed
from analysis.errors import MeasurementError
from analysis.layers import find_layers, weights_of
from analysis.objective import loss_and_gradient, loss_at
from analysis.operators import hessian
from analysis.problem import Problem
from analysis.spectrum import eigs, layer_eigenpairs
from analysis.trace import Estimate, hutchinson
from analysis.vectors import norm


@dataclass(frozen=True)
class RelativeFlatness:
    """One layer's weight matrix; both products are unchanged when the network is rescaled."""

    name: str
    weight_norm2: float  # |W|_F^2
    top: Eigenvalue  # lambda_max of the weight's block
    trace: Estimate  # of the weight's block

    @property
    def by_eigenvalue(self) -> float:
        """|W|_F^2 lambda_max(H_WW)."""
        return self.weight_norm2 * self.top.value

    @property
    def by_trace(self) -> float:
        """|W|_F^2 tr H_WW."""
        return self.weight_norm2 * self.trace.value


@dataclass(frozen=True)
class FlatnessReport:
    """Raw and rescaling-invariant measures of the same point."""

    loss: float
    eigenvalues: tuple[Eigenvalue, ...]  # the five largest of the Hessian
    trace: Estimate
    trace_converged: bool  # its standard error met the tolerance
    trace_rounded: bool  # it would have but for rounding
    frobenius: Estimate
    sam_sharpness: float
    sam_radius: float
    adaptive_sharpness: float
    adaptive_radius: float
    confirmed: bool  # both kinds of sharpness are computed in float64
    layers: tuple[RelativeFlatness, ...]
    products: int

    @property
    def spread(self) -> float:
        """lambda_1 / lambda_5: how far the top stands out (nan with fewer than five parameters)."""
        values = [pair.value for pair in self.eigenvalues]
        return values[0] / values[4] if len(values) == 5 and values[4] else float("nan")


def flatness(
    problem: Problem,
    *,
    tol: float = 1e-3,
    trace_tol: float = 0.02,
    max_probes: int = 400,
    sam_radius: float = 0.05,
    adaptive_radius: float = 0.5,
    seed: int = 0,
    progress: Callable[[str, int, float], None] | None = None,
) -> FlatnessReport:
    """All measures of one point; radii default to those usual in training with SAM and ASAM.

    `progress` is called with the stage ("", a layer's name, "trace"), its products so far and its relative error.

    >>> import torch
    >>> from analysis.flatness import flatness
    >>> from analysis.problem import make_problem
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> problem = make_problem(model, "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 2))
    >>> report = flatness(problem)
    >>> [layer.name for layer in report.layers], report.sam_sharpness > 0
    (['0', '2'], True)
    """
    known = weights_of(problem)
    weights = {
        layer.name: [full for full in layer.parameters.values() if full in known] for layer in find_layers(problem)
    }
    weights = {name: own for name, own in weights.items() if own}
    on_weights = problem.select(name for own in weights.values() for name in own)
    whole = eigs(problem, 5, tol=tol, layers=[], seed=seed, progress=progress)
    tops = layer_eigenpairs(on_weights, tol=tol, seed=seed, progress=progress)
    told = None if progress is None else lambda probes, error: progress("trace", probes, error)
    places = positions(problem)
    groups = {name: torch.cat([places[full] for full in own]) for name, own in weights.items()}
    moments = hutchinson(
        hessian(problem), tol=trace_tol, max_probes=max_probes, groups=groups, seed=seed, progress=told
    )
    exact = in_float64_where_it_runs(problem)
    return FlatnessReport(
        loss=whole.loss,
        eigenvalues=whole.eigenvalues,
        trace=moments.trace,
        trace_converged=moments.converged,
        trace_rounded=moments.rounded,
        frobenius=moments.frobenius,
        sam_sharpness=sam_sharpness(exact or problem, sam_radius),
        sam_radius=sam_radius,
        adaptive_sharpness=adaptive_sharpness(exact or problem, adaptive_radius),
        adaptive_radius=adaptive_radius,
        confirmed=exact is not None,
        layers=tuple(
            RelativeFlatness(
                name=name,
                weight_norm2=sum(norm(problem.parameters[full].reshape(-1)) ** 2 for full in weights[name]),
                top=listed(pairs)[0],
                trace=moments.groups[name],
            )
            for name, pairs in tops.items()
        ),
        products=whole.products + sum(pairs.products for pairs in tops.values()) + moments.products,
    )


def positions(problem: Problem) -> dict[str, Tensor]:
    """Where each parameter's entries lie in the vector theta."""
    at, found = 0, {}
    for name, parameter in problem.parameters.items():
        found[name] = torch.arange(at, at + parameter.numel(), device=problem.device)
        at += parameter.numel()
    return found


def sam_sharpness(problem: Problem, radius: float = 0.05) -> float:
    """L(theta + radius g / |g|) - L(theta), g the gradient of L: SAM's sharpness to first order.

    It is computed in float64 where the model runs in it. Raises `MeasurementError` for a radius that is none.

    >>> import torch
    >>> from analysis.flatness import sam_sharpness
    >>> from analysis.problem import make_problem
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> problem = make_problem(model, "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 2))
    >>> sam_sharpness(problem, radius=0.0), sam_sharpness(problem) < sam_sharpness(problem, radius=0.1)
    (0.0, True)
    """
    _require_radius(radius)
    problem = in_float64_where_it_runs(problem) or problem
    loss, g = loss_and_gradient(problem)
    length = norm(g)
    return loss_at(problem, problem.point() + (radius / length) * g) - loss if length else 0.0


def adaptive_sharpness(problem: Problem, radius: float = 0.5) -> float:
    """L(theta + radius T^2 g / |T g|) - L(theta) with T = diag |theta|: ASAM's sharpness to first order, without its
    eta.

    Every parameter, biases included, is scaled by its own magnitude, which makes the number invariant to rescaling. It
    is computed in float64 where the model runs in it. Raises `MeasurementError` for a radius that is none.

    >>> import torch
    >>> from analysis.flatness import adaptive_sharpness
    >>> from analysis.problem import make_problem
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> problem = make_problem(model, "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 2))
    >>> adaptive_sharpness(problem, radius=0.0), adaptive_sharpness(problem) > 0
    (0.0, True)
    """
    _require_radius(radius)
    problem = in_float64_where_it_runs(problem) or problem
    loss, g = loss_and_gradient(problem)
    theta = problem.point()
    length = norm(theta.abs() * g)
    return loss_at(problem, theta + (radius / length) * theta.square() * g) - loss if length else 0.0


def _require_radius(radius: float) -> None:
    if not 0 <= radius < math.inf:
        raise MeasurementError(f"The radius of a sharpness is a number of 0 or more, not {radius:g}.")
