"""What the statements ask of the loss: S1 for the Gauss-Newton matrix needs one that is convex in the outputs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analysis.problem import make_problem
from analysis.theory.chain import chain
from analysis.theory.statements import broken


def welsch(outputs: Tensor, targets: Tensor) -> Tensor:
    """Redescending: its second derivative is negative far away."""
    return (1 - torch.exp(-((outputs[:, 0] - targets) ** 2) / 2)).mean()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [4, 300])  # a matrix written out, and one searched
def test_the_gauss_newton_matrix_of_a_loss_that_is_not_convex_breaks_no_theorem(seed: int, width: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 1)).double()
    x = torch.randn(20, 2, dtype=torch.float64)
    checks = chain(make_problem(model, welsch, (x, 3 * torch.sin(x[:, 0])))).checks
    (own,) = [check for check in checks if check.statement == "S1 (G)"]
    assert not own.claimed
    assert not broken(checks)


@pytest.mark.parametrize("loss", ["mse", nn.MSELoss(), lambda z, y: ((z - y) ** 2).sum(1).mean()])
def test_a_loss_known_or_seen_to_be_convex_is_held_to_s1(loss: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    x = torch.randn(20, 2, dtype=torch.float64)
    (own,) = [
        c for c in chain(make_problem(model, loss, (x, x.sum(1, keepdim=True)))).checks if c.statement == "S1 (G)"
    ]
    assert own.claimed
    assert own.outcome == "holds"
