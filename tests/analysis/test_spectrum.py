"""The whole report: network and layers, both methods, both backends, against dense matrices."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.problem import make_problem
from analysis.pyhessian_backend import pyhessian_operator
from analysis.spectrum import eigs


def exact_blocks(case: Any, dense: torch.Tensor) -> dict[str, torch.Tensor]:
    at, blocks = 0, {}
    for name, module in case.model.named_modules():
        size = sum(p.numel() for p in module.parameters(recurse=False))
        if size:
            blocks[name] = dense[at : at + size, at : at + size]
            at += size
    return blocks


@pytest.mark.parametrize(
    ("backend", "method"),
    [
        ("flatlab", "lanczos"),
        pytest.param("flatlab", "power", marks=pytest.mark.long),
        ("pyhessian", "lanczos"),
        pytest.param("pyhessian", "power", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("architecture", ["mlp", "residual"])
def test_eigs_of_network_and_layers(
    make_case: Any, dense_hessian: Any, architecture: str, backend: Any, method: Any
) -> None:
    case = make_case(architecture, phi="tanh", seed=3)
    dense = dense_hessian(case)
    problem = case.problem(chunk_size=3)
    report = eigs(problem, 2, tol=1e-3, max_iter=3000, method=method, backend=backend)
    assert report.converged

    def top(matrix: torch.Tensor) -> list[float]:
        values = torch.linalg.eigvalsh(matrix)
        order = values.abs().argsort(descending=True) if method == "power" else values.argsort(descending=True)
        return [float(value) for value in values[order][:2]]

    assert [e.value for e in report.eigenvalues] == pytest.approx(top(dense), rel=1e-4)
    blocks = exact_blocks(case, dense)
    assert [layer.name for layer in report.layers] == list(blocks)
    for layer in report.layers:
        assert [e.value for e in layer.eigenvalues] == pytest.approx(top(blocks[layer.name]), rel=1e-4, abs=1e-9)
        assert layer.parameters == len(blocks[layer.name])
        assert all(e.error <= e.residual + 1e-12 for e in layer.eigenvalues)
    assert report.products > 0
    assert report.loss == pytest.approx(F.cross_entropy(case.model(case.inputs.double()), case.targets).item())


def test_pyhessian_makes_our_products_and_leaves_the_model_alone(make_case: Any) -> None:
    from analysis.operators import hessian

    case = make_case("cnn", phi="gelu")
    case.model.train()
    case.model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    problem = case.problem(chunk_size=3)
    v = torch.randn(problem.size, dtype=torch.float64)
    torch.testing.assert_close(pyhessian_operator(problem)(v), hessian(problem)(v))
    assert case.model.training
    assert all(p.grad is None for p in case.model.parameters())
    with pytest.raises(MeasurementError, match="mean"):
        pyhessian_operator(make_case(reduction="sum").problem())


def test_selected_layers_progress_and_non_convergence(make_case: Any) -> None:
    told: list[tuple[str, int]] = []
    problem = make_case("mlp").problem()
    report = eigs(
        problem,
        3,
        tol=1e-12,
        max_iter=2,
        layers=["3"],
        progress=lambda stage, products, _: told.append((stage, products)),
    )
    assert not report.converged
    assert [layer.name for layer in report.layers] == ["3"]
    assert {stage for stage, _ in told} == {"", "3"}
    assert eigs(problem, layers=[]).layers == ()


def test_float32_cnn_on_images_converges_by_power_iteration() -> None:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 5), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(200, 20), nn.ReLU(), nn.Linear(20, 10))
    x, y = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(20):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    problem = make_problem(model, "cross_entropy", (x, y))
    power, krylov = eigs(problem, method="power", max_iter=500), eigs(problem)
    assert power.converged
    assert krylov.converged
    for ours, theirs in zip(power.layers, krylov.layers, strict=True):
        assert ours.eigenvalues[0].value == pytest.approx(theirs.eigenvalues[0].value, rel=2e-3)
    assert power.eigenvalues[0].value == pytest.approx(krylov.eigenvalues[0].value, rel=2e-3)


@pytest.mark.parametrize("outputs", [2, 3, 5])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_every_copy_of_a_repeated_eigenvalue_is_found_though_the_gradient_is_the_same_for_all(
    outputs: int, k: int
) -> None:
    """A linear map with squared loss: the Hessian is 2 / (N m) (X^T X) once per output, all in the same state."""
    torch.manual_seed(0)
    x = torch.randn(50, 30, dtype=torch.float64) * torch.linspace(0.1, 2, 30, dtype=torch.float64)
    y = torch.randn(50, 1, dtype=torch.float64).expand(50, outputs)
    model = nn.Linear(30, outputs, bias=False).double()
    nn.init.constant_(model.weight, 0.1)
    report = eigs(make_problem(model, "mse", (x, y)), k, tol=1e-6, layers=())
    once = torch.linalg.eigvalsh(2 / (50 * outputs) * x.T @ x).flip(0)
    found = torch.tensor([e.value for e in report.eigenvalues], dtype=torch.float64)
    torch.testing.assert_close(found, once.repeat_interleave(outputs)[:k], rtol=1e-6, atol=0)


@pytest.mark.parametrize("margin", [5.0, 20.0, 30.0, 34.0, 38.0, 45.0])
@pytest.mark.parametrize("label", [0, 1])
def test_an_eigenvalue_of_a_saturated_loss_claims_no_more_than_p_times_1_minus_p_carries(
    margin: float, label: int
) -> None:
    """torch takes p (1 - p) as p - p^2, of which rounding leaves nothing where 1 - p is below its precision."""
    x = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[margin, 0.0], [0.0, 0.0]], dtype=torch.float64))
    q = 1 / (1 + math.exp(margin))  # 1 - p, exactly
    exact = 2 * q * (1 - q) * float(x.square().sum())
    (value,) = eigs(make_problem(model, "cross_entropy", (x, torch.tensor([label])))).eigenvalues
    assert abs(value.value - exact) <= max(value.residual, 1e-8 * exact)
    assert value.converged == (margin < 25)
    assert value.rounded == (margin > 25)


@pytest.mark.parametrize("which", ["smallest", "both"])
@pytest.mark.parametrize("margin", [5.0, 12.0, 18.0, 24.0, 30.0])
@pytest.mark.parametrize("right", [True, False])
def test_what_is_zero_beside_a_saturated_eigenvalue_is_not_claimed_to_be_something_else(
    margin: float, right: bool, which: Any
) -> None:
    """(diag(p) - p p^T) x x^T has a null vector whatever p is; what rounding leaves there is as large as it may be."""
    torch.manual_seed(0)
    x = torch.randn(3, 2, dtype=torch.float64)
    model = nn.Linear(2, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, margin * torch.eye(3, dtype=torch.float64)).solution.T)
    targets = model(x).argmax(1) if right else model(x).argmin(1)
    report = eigs(make_problem(model, "cross_entropy", (x, targets)), 2, which=which, tol=1e-3)
    for value in report.eigenvalues[-2:]:
        assert abs(value.value) <= value.residual
        assert abs(value.value) <= value.error
