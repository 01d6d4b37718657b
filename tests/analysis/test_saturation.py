"""What an eigenvalue of a saturated loss claims, where some targets do not count; and of other losses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analysis.problem import make_problem
from analysis.saturation import lost_share
from analysis.spectrum import eigs


@pytest.mark.parametrize("sure", [30.0, 37.5])
@pytest.mark.parametrize("how", ["ignored", "weightless", "none"])
def test_targets_that_do_not_count_say_nothing_of_rounding(how: str, sure: float) -> None:
    x = torch.cat([torch.ones(10, 1), torch.full((10, 1), 0.01)]).double()
    y = torch.cat([torch.ones(10).long(), torch.full((10,), {"ignored": -100, "weightless": 2, "none": 1}[how])])
    model = nn.Linear(1, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[sure], [0.0], [-1e9]]))
    if how == "none":
        x, y = x[:10], y[:10]
    loss: Any = nn.CrossEntropyLoss(torch.tensor([1.0, 1.0, 0.0])) if how == "weightless" else "cross_entropy"
    (value,) = eigs(make_problem(model, loss, (x, y), dtype=torch.float64), 1, layers=[]).eigenvalues
    p = 1 / (1 + math.exp(sure))
    assert abs(value.value - 2 * p * (1 - p)) <= value.residual
    assert value.residual < 1e-14


def test_the_last_of_next_tokens_predicts_nothing() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.tensor([[0.0, 60.0, 0.0], [60.0, 0.0, 0.0], [0.1, 0.0, 0.2]]))

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.table[input_ids]

    def share(*tokens: int) -> float:
        ids = torch.tensor([tokens])
        return lost_share(make_problem(Tokens(), "next_token", ({"input_ids": ids}, ids), dtype=torch.float64))

    assert share(0, 1, 0, 2) == 1.0  # after 0 and 1 it is sure, after 2 it is not, and there is nothing to predict
    assert share(0, 2, 0, 1) < 1e-13


def test_a_negative_loss_is_no_softmaxs() -> None:
    class Density(nn.Module):
        """The negative log-likelihood of a normal distribution, on narrow data."""

        def __init__(self) -> None:
            super().__init__()
            self.mean, self.log = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.full((2,), -3.0))

        def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            return (((x - self.mean) / self.log.exp()) ** 2 / 2 + self.log + math.log(2 * math.pi) / 2).sum(1).mean()

    x = 0.05 * torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    problem = make_problem(Density(), "own_per_sample", (x, torch.zeros(30).long()), dtype=torch.float64)
    (value,) = eigs(problem, 1, layers=[]).eigenvalues
    expected = torch.autograd.functional.hessian(
        lambda theta: (((x.double() - theta[:2]) / theta[2:].exp()) ** 2 / 2 + theta[2:]).sum(1).mean(), problem.point()
    )
    assert value.value == pytest.approx(torch.linalg.eigvalsh(torch.as_tensor(expected)).max().item(), rel=1e-6)
    assert value.converged
    assert value.residual < 1e-2
