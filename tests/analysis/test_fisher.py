"""Gauss-Newton, Fisher and empirical Fisher matrices against dense ones that are written out sample by sample."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.operators import (
    Matrix,
    SymmetricOperator,
    curvature_matrix,
    empirical_fisher,
    fisher,
    gauss_newton,
)
from analysis.problem import Problem, make_problem
from analysis.spectrum import eigs

SAMPLES, CLASSES, TOKENS = 7, 3, 4


def net(outputs: int = CLASSES) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def labels(*shape: int) -> Tensor:
    return torch.randint(CLASSES, shape, generator=torch.Generator().manual_seed(3))


def dense(operator: SymmetricOperator) -> Tensor:
    return operator(torch.eye(operator.size, dtype=operator.torch_dtype))


def jacobian(problem: Problem, model: nn.Module, x: Tensor) -> Tensor:
    """dz / dtheta, (samples, ..., p)."""

    def outputs(theta: Tensor) -> Tensor:
        z: Tensor = functional_call(model, dict(zip(problem.parameters, problem.split(theta), strict=True)), (x,))
        return z

    J: Any = jacrev(outputs)(problem.point())
    assert isinstance(J, Tensor)
    return J


def categorical_fisher(z: Tensor, J: Tensor) -> Tensor:
    """sum over rows of E_y [g g^T], the expectation taken class by class: z (m, C), J (m, C, p)."""
    total = J.new_zeros(J.shape[-1], J.shape[-1])
    for row, own in zip(z, J, strict=True):
        p = torch.softmax(row, 0)
        for c in range(len(p)):
            g = own.T @ (F.one_hot(torch.tensor(c), len(p)) - p)
            total += p[c] * torch.outer(g, g)
    return total


@given(
    label_smoothing=st.sampled_from([0.0, 0.3]),
    reduction=st.sampled_from(["mean", "sum"]),
    chunk_size=st.sampled_from([2, 3, None]),
    ignored=st.booleans(),
    memory=st.sampled_from([1, 1 << 30]),
)
@settings(max_examples=6, deadline=None)
def test_fisher_of_cross_entropy_is_the_expectation_over_classes(
    label_smoothing: float, reduction: Any, chunk_size: int | None, ignored: bool, memory: int
) -> None:
    model, x, y = net(), inputs(SAMPLES), labels(SAMPLES)
    if ignored:
        y[1] = 7
    loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing, ignore_index=7, reduction=reduction)
    problem = make_problem(model, loss, (x, y), reduction=reduction, chunk_size=chunk_size, memory=memory)
    counted = y != 7
    J = jacobian(problem, model, x)
    expected = categorical_fisher(model(x).detach()[counted], J[counted])
    expected /= int(counted.sum()) if reduction == "mean" else 1
    torch.testing.assert_close(dense(fisher(problem)), expected)
    torch.testing.assert_close(dense(gauss_newton(problem)), expected)  # for cross-entropy they are one


@pytest.mark.parametrize("classes_last", [True, False])
def test_fisher_of_tokens_leaves_padding_out(classes_last: bool) -> None:
    model, x, y = net(), inputs(SAMPLES, TOKENS), labels(SAMPLES, TOKENS)
    y[0, 2:] = -100
    y[3] = -100
    own: nn.Module = model if classes_last else Transposed(model)
    loss: Any = "cross_entropy" if classes_last else nn.CrossEntropyLoss()
    problem = make_problem(own, loss, (x, y), chunk_size=2)
    J = jacobian(problem, own, x)
    J, z = (J, own(x)) if classes_last else (J.transpose(1, 2), own(x).transpose(1, 2))
    counted = y != -100
    expected = categorical_fisher(z.detach()[counted], J[counted]) / int(counted.sum())
    torch.testing.assert_close(dense(fisher(problem)), expected)
    torch.testing.assert_close(dense(gauss_newton(problem)), expected)


class Transposed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x).transpose(1, 2)
        return z


def test_fisher_of_class_probabilities_is_that_of_labels() -> None:
    model, x = net(), inputs(SAMPLES)
    soft = torch.softmax(inputs(SAMPLES)[:, :CLASSES], 1)
    one, other = (make_problem(model, "cross_entropy", (x, y)) for y in (soft, labels(SAMPLES)))
    torch.testing.assert_close(dense(fisher(one)), dense(fisher(other)))
    with pytest.raises(MeasurementError, match="add up to one"):
        dense(fisher(make_problem(model, "cross_entropy", (x, 2 * soft))))


@pytest.mark.parametrize("outputs", [1, 3])
def test_fisher_of_binary_cross_entropy_is_the_expectation_over_labels(outputs: int) -> None:
    model, x = net(outputs), inputs(SAMPLES)
    y = torch.rand(SAMPLES, outputs, dtype=torch.float64).round()
    problem = make_problem(model, "binary_cross_entropy", (x, y), chunk_size=3)
    J, z = jacobian(problem, model, x), model(x).detach()
    expected = torch.zeros(problem.size, problem.size, dtype=torch.float64)
    for n in range(SAMPLES):
        for i in range(outputs):
            p = torch.sigmoid(z[n, i])
            for label, probability in ((0, 1 - p), (1, p)):
                g = (p - label) * J[n, i]
                expected += probability * torch.outer(g, g) / (SAMPLES * outputs)
    torch.testing.assert_close(dense(fisher(problem)), expected)
    torch.testing.assert_close(dense(gauss_newton(problem)), expected)


@pytest.mark.parametrize(("outputs", "reduction"), [(1, "mean"), (3, "mean"), (3, "sum")])
def test_fisher_of_squared_error_is_half_of_gauss_newton(outputs: int, reduction: Any) -> None:
    """(z - y)^2 is twice the negative logarithm of a Gaussian's density of unit variance."""
    model, x = net(outputs), inputs(SAMPLES)
    y = inputs(SAMPLES)[:, :outputs].flip(0)
    problem = make_problem(model, "mse", (x, y), chunk_size=3, reduction=reduction)
    J = jacobian(problem, model, x).reshape(-1, problem.size)
    drawn = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert drawn.square().mean().item() == pytest.approx(1, abs=0.01)  # E of the squared score, d/dz of (z - y)^2 / 2
    expected = J.T @ J / (SAMPLES * outputs if reduction == "mean" else 1)
    torch.testing.assert_close(dense(fisher(problem)), expected)
    torch.testing.assert_close(dense(gauss_newton(problem)), 2 * expected)


def weighted_tokens(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    counted = targets != -1
    total = F.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=-1, reduction="sum")
    return total, counted.sum()


def hinge(outputs: Tensor, targets: Tensor, power: int = 1) -> Tensor:
    right = outputs.gather(1, targets[:, None])
    return (1 + outputs - right).clamp(min=0).pow(power).mean(1).mean()


EMPIRICAL: dict[str, tuple[Any, Tensor, Tensor]] = {
    "cross-entropy": ("cross_entropy", inputs(SAMPLES), labels(SAMPLES)),
    "smoothed": (partial(F.cross_entropy, label_smoothing=0.2), inputs(SAMPLES), labels(SAMPLES)),
    "squared": ("mse", inputs(SAMPLES), inputs(SAMPLES).flip(0)[:, :CLASSES]),
    "own": (partial(hinge, power=2), inputs(SAMPLES), labels(SAMPLES)),
    "padded": (weighted_tokens, inputs(SAMPLES, TOKENS), labels(SAMPLES, TOKENS).tril(1) - 1),
}


@pytest.mark.parametrize("name", EMPIRICAL)
@pytest.mark.parametrize("chunk_size", [2, None])
def test_empirical_fisher_is_the_sum_of_outer_products(name: str, chunk_size: int | None) -> None:
    loss, x, y = EMPIRICAL[name]
    model = net()
    problem = make_problem(model, loss, (x, y), chunk_size=chunk_size)
    expected = torch.zeros(problem.size, problem.size, dtype=torch.float64)
    for n in range(SAMPLES):
        value = problem.loss(model(x[n : n + 1]), y[n : n + 1])
        gradient = torch.autograd.grad(value, list(model.parameters()))
        g = torch.cat([piece.reshape(-1) for piece in gradient])
        expected += torch.outer(g, g) / problem.normaliser
    torch.testing.assert_close(dense(empirical_fisher(problem)), expected)


def test_what_divides_is_the_divisor_of_the_loss() -> None:
    for name, divisor in (("cross-entropy", SAMPLES), ("squared", SAMPLES * CLASSES)):
        loss, x, y = EMPIRICAL[name]
        assert make_problem(net(), loss, (x, y)).normaliser == divisor


def test_empirical_fisher_differs_from_the_fisher_but_not_on_targets_drawn_from_the_prediction() -> None:
    model, x = net(), inputs(SAMPLES)
    true = dense(fisher(make_problem(model, "cross_entropy", (x, labels(SAMPLES)))))
    assert (dense(empirical_fisher(make_problem(model, "cross_entropy", (x, labels(SAMPLES))))) - true).norm() > 0.1
    p = torch.softmax(model(x).detach(), 1)
    many = torch.multinomial(p, 400, replacement=True, generator=torch.Generator().manual_seed(0)).T.reshape(-1)
    drawn = make_problem(model, "cross_entropy", (x.repeat(400, 1), many), chunk_size=2800)
    assert (dense(empirical_fisher(drawn)) - true).norm() < 0.1 * true.norm()


@pytest.mark.parametrize("matrix", ["gauss-newton", "fisher", "empirical-fisher"])
@pytest.mark.parametrize("which", ["largest", "both"])
def test_eigenvalues_of_every_matrix_and_its_blocks(matrix: Matrix, which: Any) -> None:
    problem = make_problem(net(), "cross_entropy", (inputs(SAMPLES), labels(SAMPLES)), dtype=torch.float64)
    report = eigs(problem, 2, tol=1e-8, which=which, matrix=matrix)
    whole = dense(curvature_matrix(problem, matrix))
    at = 0
    blocks = []
    for layer in report.layers:
        blocks.append((layer.eigenvalues, whole[at : at + layer.parameters, at : at + layer.parameters]))
        at += layer.parameters
    for found, exact in [(report.eigenvalues, whole), *blocks]:
        values = torch.linalg.eigvalsh(exact)
        wanted = [*values.flip(0)[:2], *(values[:2] if which == "both" else [])]
        assert [value.value for value in found] == pytest.approx([float(x) for x in wanted], rel=1e-7, abs=1e-14)
        assert all(value.converged or value.rounded for value in found)


def test_float32_is_confirmed_in_float64() -> None:
    problem = make_problem(net(), "cross_entropy", (inputs(SAMPLES), labels(SAMPLES)), dtype=torch.float32)
    for matrix in ("gauss-newton", "fisher", "empirical-fisher"):
        (top,) = eigs(problem, layers=[], matrix=matrix).eigenvalues
        assert (top.confirmed, top.converged) == (True, True)


def test_a_large_null_space_is_found_at_the_lower_end() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 3)).double()
    problem = make_problem(model, "cross_entropy", (inputs(SAMPLES), labels(SAMPLES)))
    report = eigs(problem, 2, which="smallest", matrix="fisher", layers=[])
    assert [value.value for value in report.eigenvalues] == pytest.approx([0, 0], abs=1e-3)
    assert report.converged
    assert report.products < 60


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss()])
def test_a_class_of_bytes_that_torch_takes_for_ignored_counts(loss: Any) -> None:
    """As uint8, 156 equals -100."""
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([156, 7]).repeat(10)
    torch.manual_seed(0)
    model = nn.Linear(2, 200)
    of_bytes, of_longs = (dense(fisher(make_problem(model, loss, (x, labels)))) for labels in (y.to(torch.uint8), y))
    assert of_longs.trace() > 1
    torch.testing.assert_close(of_bytes, of_longs)
