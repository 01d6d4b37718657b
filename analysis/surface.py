"""The loss on a line or a plane through the model's parameters.

    L(theta + a d_1)    or    L(theta + a d_1 + b d_2)

Along eigenvectors of the Hessian the curvature at the centre is the eigenvalue. Random directions are
filter-normalised: each filter (output unit) of the direction has the norm of the model's filter, so that networks of
different scale can be compared (Li, Xu, Taylor, Studer and Goldstein 2018); biases and normalisation parameters do not
move.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analysis.errors import MeasurementError
from analysis.layers import weights_of
from analysis.members import named_parameters
from analysis.objective import loss_at
from analysis.problem import Problem
from analysis.vectors import random_rows


@dataclass(frozen=True)
class Surface:
    """Losses on a grid; the centre (0, 0) is the model itself."""

    a: Tensor  # (n,) float64, multiples of the first direction
    b: Tensor  # (m,) float64 of the second, (1,) zero on a line
    losses: Tensor  # (n, m) float64
    directions: Tensor  # (p, 1 or 2)


def loss_surface(
    problem: Problem,
    directions: Tensor,
    *,
    extent: float = 1.0,
    points: int = 21,
    progress: Callable[[int, int], None] | None = None,
) -> Surface:
    """L at `points` equally spaced multiples in [-extent, extent] of each of one or two directions (p, 1) or (p, 2).

    Each point costs a forward pass over all samples. `progress` is told the points done and their number.

    >>> import torch
    >>> from analysis.problem import make_problem
    >>> from analysis.surface import loss_surface
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> problem = make_problem(model, "mse", (torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1)))
    >>> line = loss_surface(problem, torch.tensor([[1.0], [0.0]]), points=3)
    >>> line.a.tolist(), tuple(line.losses.shape)
    ([-1.0, 0.0, 1.0], (3, 1))
    >>> round((line.losses[0] + line.losses[2] - 2 * line.losses[1]).item(), 5)  # the curvature along this line
    4.0
    """
    if directions.dim() != 2 or directions.shape[0] != problem.size or directions.shape[1] not in (1, 2):
        raise MeasurementError(f"Directions must have shape ({problem.size}, 1 or 2), not {tuple(directions.shape)}.")
    if points < 2:
        raise MeasurementError(f"A surface needs at least 2 points per direction, not {points}.")
    theta = problem.point()
    first = directions[:, 0].to(theta)
    second = directions[:, -1].to(theta)
    a = extent * (2 * torch.arange(points, dtype=torch.float64) / (points - 1) - 1)  # exactly zero in the middle
    b = a if directions.shape[1] == 2 else torch.zeros(1, dtype=torch.float64)
    losses = torch.empty(len(a), len(b), dtype=torch.float64)
    for i, along in enumerate(a.tolist()):
        for j, across in enumerate(b.tolist()):
            losses[i, j] = loss_at(problem, theta + along * first + across * second)
            if progress:
                progress(i * len(b) + j + 1, losses.numel())
    return Surface(a, b, losses, directions)


def filter_normalised_directions(problem: Problem, count: int = 2, *, seed: int = 0) -> Tensor:
    """Random directions (p, count), filter-normalised; the same random numbers for every model of this shape.

    >>> import torch
    >>> from analysis.problem import make_problem
    >>> from analysis.surface import filter_normalised_directions
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> problem = make_problem(model, "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 2))
    >>> directions = filter_normalised_directions(problem)
    >>> first = problem.split(directions[:, 0])[0]  # of the weights of the first layer, row by row as long as these
    >>> tuple(directions.shape), torch.allclose(first.norm(dim=1), model[0].weight.norm(dim=1))
    ((17, 2), True)
    """
    generator = torch.Generator().manual_seed(seed)
    rows = random_rows(count, problem.size, problem.point(), generator)
    return torch.stack([_normalised(problem, row) for row in rows], dim=1)


def _normalised(problem: Problem, direction: Tensor) -> Tensor:
    pieces = []
    weights, groups = weights_of(problem), _transposed(problem)
    for piece, (name, parameter) in zip(problem.split(direction), problem.parameters.items(), strict=True):
        if name not in weights:
            pieces.append(torch.zeros_like(piece))
            continue
        own = parameter.detach()
        if name in groups:
            piece, own = (_other_way_round(weight, groups[name]) for weight in (piece, own))
        units = piece.flatten(1)
        scaled = (units * (own.flatten(1).norm(dim=1, keepdim=True) / units.norm(dim=1, keepdim=True))).view_as(piece)
        pieces.append(_other_way_round(scaled, groups[name]) if name in groups else scaled)
    return problem.flatten(pieces)


def _transposed(problem: Problem) -> dict[str, int]:
    """Weights whose first dimension is of inputs and the second of outputs, and the groups that they are in."""
    found: dict[int, int] = {}
    for module in problem.model.modules():
        if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            found[id(module.weight)] = module.groups
        elif type(module).__name__ == "Conv1D" and isinstance(getattr(module, "weight", None), Tensor):
            found[id(module.weight)] = 1  # of Hugging Face's GPT-2
    return {name: found[id(p)] for name, p in named_parameters(problem.model) if id(p) in found}


def _other_way_round(weight: Tensor, groups: int) -> Tensor:
    """(inputs, outputs / groups, ...) as (outputs, inputs / groups, ...), and back."""
    turned: Tensor = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return turned
