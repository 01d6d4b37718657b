"""L and its gradient at other points than the model's own parameters."""

import torch
from torch import Tensor

from analysis.derivatives import gradients
from analysis.distributed import summed, summed_number
from analysis.problem import Problem


def loss_at(problem: Problem, theta: Tensor) -> float:
    """L at theta (p,), summed over the samples in float64.

    >>> import torch
    >>> from analysis.objective import loss_at
    >>> from analysis.problem import make_problem
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> problem = make_problem(model, "mse", (torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1)))
    >>> loss_at(problem, torch.tensor([1.0, 0.0]))
    2.0
    """
    pieces = dict(zip(problem.parameters, problem.split(theta), strict=True))
    with problem.passing(), torch.no_grad():
        share = sum(problem.chunk_loss(chunk, pieces).item() for chunk in problem.chunks())
    return summed_number(share, problem.device, problem.distributed)


def loss_and_gradient(problem: Problem, theta: Tensor | None = None) -> tuple[float, Tensor]:
    """L and dL/dtheta (p,) at `theta` (p,), or at the model's own parameters, in the problem's dtype.

    Both are accumulated in float64.

    >>> import torch
    >>> from analysis.objective import loss_and_gradient
    >>> from analysis.problem import make_problem
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> problem = make_problem(model, "mse", (torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1)))
    >>> loss, gradient = loss_and_gradient(problem, torch.ones(2))
    >>> loss, gradient.tolist()
    (2.5, [4.0, 1.0])
    """
    pieces = problem.parameters.values() if theta is None else problem.split(theta)
    with problem.passing():
        loss, total = 0.0, torch.zeros(problem.size, dtype=torch.float64, device=problem.device)
        for chunk in problem.chunks():
            leaves = {n: piece.detach().requires_grad_() for n, piece in zip(problem.parameters, pieces, strict=True)}
            share = problem.chunk_loss(chunk, leaves)
            problem.add_to(total, gradients([share], list(leaves.values())))
            loss += share.item()
    gradient = summed(total, problem.distributed).to(problem.dtype)
    return summed_number(loss, problem.device, problem.distributed), gradient
