"""What has no Gauss-Newton or Fisher matrix is refused in a sentence, and what has one is not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.operators import (
    Matrix,
    curvature_matrix,
)
from analysis.problem import make_problem
from analysis.spectrum import eigs
from tests.analysis.test_fisher import CLASSES, SAMPLES, dense, hinge, inputs, jacobian, labels, net


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.inner(x)
        return z, z


class SamplesSecond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner(x).transpose(0, 1)
        return z


def log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.nll_loss(F.log_softmax(outputs, 1), targets)


def of_both(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs[0], targets)


def of_columns(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.T, targets)


class LogProbabilities(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = F.log_softmax(self.inner(x), 1)
        return z


REFUSED: dict[str, tuple[Matrix, nn.Module, Any, str]] = {
    "weights": ("fisher", net(), nn.CrossEntropyLoss(weight=torch.ones(CLASSES)), "no log-likelihood"),
    "own function": ("fisher", net(), log_likelihood, "Of the loss log_likelihood it is not known"),
    "log-probabilities": ("fisher", LogProbabilities(), nn.NLLLoss(), "Of the loss nll_loss it is not known"),
    "linear": ("gauss-newton", LogProbabilities(), nn.NLLLoss(), "linear in the model's outputs"),
    "piecewise linear": ("gauss-newton", net(), hinge, "linear in the model's outputs"),
    "two outputs": ("gauss-newton", TwoOutputs(), of_both, "one tensor of real numbers"),
    "rows": ("empirical-fisher", SamplesSecond(), of_columns, "a row for each sample"),
    "no rows": ("empirical-fisher", TwoOutputs(), of_both, "one tensor of real numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_such_matrix_is_refused_in_one_sentence(name: str) -> None:
    matrix, model, loss, says = REFUSED[name]
    problem = make_problem(model, loss, (inputs(SAMPLES), labels(SAMPLES)))
    with pytest.raises(MeasurementError, match=says) as raised:
        dense(curvature_matrix(problem, matrix))
    assert "\n" not in str(raised.value)


PADDED_FIRST = torch.cat([torch.full((5,), -100), labels(SAMPLES)])
FAR = torch.cat([torch.full((5, CLASSES), 1e3), inputs(SAMPLES)[:, :CLASSES]]).double()


@pytest.mark.parametrize(
    ("loss", "targets"),
    [("cross_entropy", PADDED_FIRST), (nn.HuberLoss(), FAR), (nn.HuberLoss(), FAR.flip(0))],
    ids=["padded", "far", "far-last"],
)
def test_a_loss_is_not_called_linear_for_its_first_samples(loss: Any, targets: Tensor) -> None:
    """Five samples that are not counted, or where Huber's loss is linear, come before those that are curved."""
    model, x = net(), inputs(SAMPLES + 5)
    problem = make_problem(model, loss, (x, targets), chunk_size=2)
    z = model(x).detach()
    f = loss if callable(loss) else F.cross_entropy
    between = torch.autograd.functional.hessian(lambda z: f(z, targets), z).reshape(z.numel(), z.numel())
    J = jacobian(problem, model, x).reshape(-1, problem.size)
    torch.testing.assert_close(dense(curvature_matrix(problem, "gauss-newton")), J.T @ between @ J)


def test_a_loss_may_change_the_outputs_in_place() -> None:
    def tempered(outputs: Tensor, targets: Tensor) -> Tensor:
        outputs /= 2
        return F.cross_entropy(outputs, targets)

    def plain(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs / 2, targets)

    for matrix in ("gauss-newton", "empirical-fisher"):
        found, expected = (
            dense(curvature_matrix(make_problem(net(), loss, (inputs(SAMPLES), labels(SAMPLES))), matrix))
            for loss in (tempered, plain)
        )
        torch.testing.assert_close(found, expected)


def test_own_losses_that_are_no_log_likelihood_have_a_gauss_newton_matrix() -> None:
    problem = make_problem(net(), nn.HuberLoss(), (inputs(SAMPLES), inputs(SAMPLES)[:, :CLASSES].flip(0)))
    assert torch.linalg.eigvalsh(dense(curvature_matrix(problem, "gauss-newton")))[-1] > 0
    with pytest.raises(MeasurementError, match="huber_loss"):
        curvature_matrix(problem, "fisher")


def test_other_ends_and_matrices_are_lanczos_own() -> None:
    problem = make_problem(net(), "cross_entropy", (inputs(SAMPLES), labels(SAMPLES)))
    with pytest.raises(MeasurementError, match="magnitude alone"):
        eigs(problem, method="power", which="smallest")
    with pytest.raises(MeasurementError, match="Hessian alone"):
        eigs(problem, backend="pyhessian", matrix="fisher")
