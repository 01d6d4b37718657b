"""Gauss-Newton and Fisher matrices where the logits come in a mapping or an object, and of the next token's loss."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.operators import Matrix, curvature_matrix
from analysis.problem import Problem, make_problem
from analysis.spectrum import eigs

SAMPLES, TOKENS, CLASSES = 6, 4, 3


@dataclass
class Said:
    """Outputs that are an object."""

    logits: Tensor
    loss: Tensor | None = None


class Wrapped(nn.Module):
    """The logits of a small network, in a mapping beside other things, as an attribute, or bare."""

    def __init__(self, classes: int, shape: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, classes)).double()
        self.shape = shape

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.inner(x)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        if self.shape == "bare":
            return logits
        return {"hidden": 2 * logits, "logits": logits, "loss": loss} if self.shape == "mapping" else Said(logits, loss)


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def labels(*shape: int) -> Tensor:
    return torch.randint(CLASSES, shape, generator=torch.Generator().manual_seed(3))


def padded() -> Tensor:
    tokens = labels(SAMPLES, TOKENS)
    tokens[0, 2:] = -100
    tokens[3] = -100
    tokens[4, 0] = -100  # the first token is predicted from nothing: it never counts
    return tokens


def of_next_tokens(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z[:, :-1].flatten(0, 1), y[:, 1:].flatten(), reduction="sum")


def of_one_output(z: Tensor, y: Tensor) -> Tensor:
    return (z[:, 0] - y).square().sum()


def of_several_labels(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, y, reduction="sum")


def of_classes(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="sum")


ROWS = inputs(SAMPLES)
CASES: dict[str, tuple[Any, int, Tensor, Tensor, Any, float]] = {
    # the loss, the classes, x, y, the loss written out as a sum, and what that is divided by
    "cross_entropy": ("cross_entropy", CLASSES, ROWS, labels(SAMPLES), of_classes, SAMPLES),
    "torch": (nn.CrossEntropyLoss(), CLASSES, ROWS, labels(SAMPLES), of_classes, SAMPLES),
    "mse": ("mse", 1, ROWS, ROWS[:, 0].flip(0), of_one_output, SAMPLES),
    "binary": ("binary_cross_entropy", 2, ROWS, (ROWS > 0).double(), of_several_labels, 2 * SAMPLES),
    "next_token": ("next_token", CLASSES, inputs(SAMPLES, TOKENS), padded(), of_next_tokens, 13),
}


def dense_jacobian(problem: Problem, model: Wrapped, x: Tensor) -> Tensor:
    """dz / dtheta, (samples, outputs, p)."""

    def logits(theta: Tensor) -> Tensor:
        pieces = zip(problem.parameters, problem.split(theta), strict=True)
        z: Tensor = functional_call(model.inner, {n.removeprefix("inner."): p for n, p in pieces}, (x,))
        return z

    J: Any = jacrev(logits)(problem.point())
    assert isinstance(J, Tensor)
    return J.reshape(len(x), -1, problem.size)


def dense_matrices(problem: Problem, model: Wrapped, name: str) -> dict[Matrix, Tensor]:
    """All three from Jacobians of the logits, the Fisher as the expectation over what the model predicts."""
    _, _, x, y, total, divisor = CASES[name]
    J, z = dense_jacobian(problem, model, x), model.inner(x).detach()
    flat = J.reshape(z.numel(), -1)
    between: Any = torch.autograd.functional.hessian(lambda z: total(z, y), z)
    newton = flat.T @ between.reshape(z.numel(), -1) @ flat / divisor
    slopes: Any = torch.autograd.functional.jacobian(lambda z: total(z, y), z)
    g = torch.einsum("no,nop->np", slopes.flatten(1), J)
    true = newton / 2 if name == "mse" else newton  # as test_fisher.py has it
    if name == "next_token":
        true = next_token_fisher(z, y, flat.reshape(*z.shape, -1)) / divisor
    return {"gauss-newton": newton, "fisher": true, "empirical-fisher": g.T @ g / divisor}


def next_token_fisher(z: Tensor, y: Tensor, J: Tensor) -> Tensor:
    """The sum over tokens that are predicted and count of E_c [g g^T], class by class."""
    total = J.new_zeros(J.shape[-1], J.shape[-1])
    for n, t in (y[:, 1:] != -100).nonzero().tolist():
        p = torch.softmax(z[n, t], 0)
        for c in range(CLASSES):
            g = J[n, t].T @ (F.one_hot(torch.tensor(c), CLASSES) - p)
            total += p[c] * torch.outer(g, g)
    return total


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("shape", "chunk_size"), [("mapping", 4), ("object", None)])
def test_the_matrices_are_those_of_the_logits(name: str, shape: str, chunk_size: int | None) -> None:
    loss, classes, x, y, _, divisor = CASES[name]
    model = Wrapped(classes, shape)
    problem = make_problem(model, loss, (x, y), chunk_size=chunk_size)
    assert problem.normaliser == divisor
    for matrix, expected in dense_matrices(problem, model, name).items():
        operator = curvature_matrix(problem, matrix)
        torch.testing.assert_close(operator(torch.eye(problem.size, dtype=torch.float64)), expected)


@pytest.mark.parametrize("shape", ["mapping", "bare"])
@pytest.mark.parametrize("matrix", ["gauss-newton", "fisher", "empirical-fisher"])
def test_eigenvalues_in_float32_are_confirmed_in_float64(shape: str, matrix: Matrix) -> None:
    _, classes, x, y, *_ = CASES["next_token"]
    model = Wrapped(classes, shape)
    expected = dense_matrices(make_problem(model, "next_token", (x, y)), model, "next_token")[matrix]
    problem = make_problem(model, "next_token", (x, y), dtype=torch.float32)
    (top,) = eigs(problem, matrix=matrix, layers=[]).eigenvalues
    assert (top.confirmed, top.converged) == (True, True)
    assert top.value == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]), rel=1e-5)


class Pair(Wrapped):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner(x), x


def of_the_first(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs[0], targets)


def of_the_mapping(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs["logits"], targets)


REFUSED: dict[str, tuple[Matrix, nn.Module, Any, str]] = {
    "own": ("gauss-newton", Wrapped(CLASSES, "mapping"), "own_per_sample", "own_per_sample is computed within the"),
    "own rows": ("empirical-fisher", Wrapped(CLASSES, "object"), "own_per_sample", "is computed within the model"),
    "own fisher": (
        "fisher",
        Wrapped(CLASSES, "mapping"),
        "own_per_sample",
        "Of the loss own_per_sample .* the Hessian",
    ),
    "tuple": ("empirical-fisher", Pair(CLASSES, ""), of_the_first, "one tensor of real numbers.* this one's is tuple"),
    "function": ("gauss-newton", Wrapped(CLASSES, "mapping"), of_the_mapping, "a loss by name; this one's is dict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_such_matrix_is_told_why(name: str) -> None:
    matrix, model, loss, says = REFUSED[name]
    problem = make_problem(model, loss, (ROWS, labels(SAMPLES)))
    with pytest.raises(MeasurementError, match=says):
        curvature_matrix(problem, matrix)(torch.ones(problem.size, dtype=torch.float64))
