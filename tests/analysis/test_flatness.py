"""Flatness measures: what each is by its definition, and which of them a rescaled ReLU network changes."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.flatness import adaptive_sharpness, flatness, sam_sharpness
from analysis.objective import loss_and_gradient, loss_at
from analysis.operators import hessian
from analysis.problem import Problem, make_problem
from analysis.surface import filter_normalised_directions, loss_surface
from analysis.theory import study


def relu_mlp() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.randint(3, (20,))
    optimiser = torch.optim.SGD(model.parameters(), 0.3)
    for _ in range(30):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model, x, y


def rescaled(model: nn.Sequential, c: float) -> nn.Sequential:
    """The same function: first layer times c, second layer's weight divided by c."""
    other = copy.deepcopy(model)
    factors = {"0.weight": c, "0.bias": c, "2.weight": 1 / c}
    for name, parameter in other.named_parameters():
        parameter.data *= factors.get(name, 1.0)
    return other


def test_what_rescaling_changes_and_what_it_does_not() -> None:
    model, x, y = relu_mlp()
    reports = []
    for net in (model, rescaled(model, 5.0)):
        torch.testing.assert_close(net(x), model(x))
        reports.append(flatness(make_problem(net, "cross_entropy", (x, y)), tol=1e-7, trace_tol=0.005))
    before, after = reports
    assert after.adaptive_sharpness == pytest.approx(before.adaptive_sharpness, rel=1e-9)
    for one, other in zip(before.layers, after.layers, strict=True):
        assert other.by_eigenvalue == pytest.approx(one.by_eigenvalue, rel=1e-5)
        for trace in (one.trace, other.trace):  # so small a matrix is worked through whole
            assert trace.standard_error == trace.rounding <= 1e-15 * trace.value
        assert other.by_trace == pytest.approx(one.by_trace, rel=1e-9)
    assert after.eigenvalues[0].value > 2 * before.eigenvalues[0].value
    assert after.trace.value > 2 * before.trace.value
    assert after.sam_sharpness > 1.5 * before.sam_sharpness


def test_every_measure_by_its_definition(make_case: Any, dense_hessian: Any) -> None:
    case = make_case("mlp", phi="tanh")
    report = flatness(case.problem(), tol=1e-8, trace_tol=0.01)
    exact = dense_hessian(case)
    values = torch.linalg.eigvalsh(exact).flip(0)
    assert [pair.value for pair in report.eigenvalues] == pytest.approx(values[:5].tolist(), rel=1e-6)
    assert report.spread == pytest.approx((values[0] / values[4]).item(), rel=1e-6)
    assert report.trace.value == pytest.approx(exact.trace().item(), abs=1e-9)
    assert report.frobenius.value == pytest.approx(exact.norm().item(), abs=1e-9)
    first = report.layers[0]  # the first layer's weight lies first in theta
    weight = case.model[1].weight
    block = exact[: weight.numel(), : weight.numel()]
    assert first.by_eigenvalue == pytest.approx(
        (weight.norm() ** 2 * torch.linalg.eigvalsh(block)[-1]).item(), rel=1e-6
    )
    assert first.trace.value == pytest.approx(block.trace().item(), abs=1e-9)


def test_sharpness_is_what_a_step_of_sam_climbs(make_case: Any) -> None:
    case = make_case("cnn")
    problem = case.problem(chunk_size=2)
    loss, g = loss_and_gradient(problem)
    case.model.double()
    whole = case.loss(case.model(case.inputs.double()), case.targets)
    plain = torch.autograd.grad(whole, list(case.model.parameters()))
    torch.testing.assert_close(g, torch.cat([p.reshape(-1) for p in plain]))
    assert loss == pytest.approx(whole.item())
    assert sam_sharpness(problem, 0.05) == pytest.approx(loss_at(problem, problem.point() + 0.05 * g / g.norm()) - loss)
    step = problem.point() ** 2 * g
    assert adaptive_sharpness(problem, 0.5) == pytest.approx(
        loss_at(problem, problem.point() + 0.5 * step / (problem.point() * g).norm()) - loss
    )
    for measure in (sam_sharpness, adaptive_sharpness):
        assert measure(problem, 1e-3) > 0


def test_the_surface_along_an_eigenvector_curves_by_the_eigenvalue(make_case: Any) -> None:
    problem = make_case("mlp", phi="tanh").problem()
    H = hessian(problem)
    values, vectors = torch.linalg.eigh(H(torch.eye(H.size, dtype=torch.float64)))
    surface = loss_surface(problem, vectors[:, [-1, -2]], extent=1e-3, points=3)
    h = 1e-3
    curvature = (surface.losses[2, 1] - 2 * surface.losses[1, 1] + surface.losses[0, 1]) / h**2
    assert curvature.item() == pytest.approx(values[-1].item(), rel=1e-3)
    across = (surface.losses[1, 2] - 2 * surface.losses[1, 1] + surface.losses[1, 0]) / h**2
    assert across.item() == pytest.approx(values[-2].item(), rel=1e-3)
    assert surface.losses[1, 1].item() == pytest.approx(loss_at(problem, problem.point()))


def test_filter_normalised_directions(make_case: Any) -> None:
    problem = make_case("cnn").problem()
    directions = filter_normalised_directions(problem, seed=1)
    assert directions.shape == (problem.size, 2)
    for piece, parameter in zip(problem.split(directions[:, 0]), problem.parameters.values(), strict=True):
        if parameter.dim() == 1:
            assert (piece == 0).all()
        else:
            torch.testing.assert_close(piece.flatten(1).norm(dim=1), parameter.flatten(1).norm(dim=1))
    assert (directions == filter_normalised_directions(problem, seed=1)).all()
    assert (directions != filter_normalised_directions(problem, seed=2)).any()


@pytest.mark.parametrize("groups", [1, 2])
def test_directions_are_normalised_by_output_unit_whichever_dimension_that_is(groups: int) -> None:
    model = nn.Sequential(nn.ConvTranspose1d(4, 6, 3, groups=groups), nn.Flatten(), nn.Linear(30, 2)).double()
    problem = make_problem(model, "mse", (torch.randn(5, 4, 3).double(), torch.randn(5, 2).double()))
    direction = problem.split(filter_normalised_directions(problem, 1)[:, 0])[0]
    weight = model.get_parameter("0.weight").detach()
    for group in range(groups):
        inputs = slice(group * 4 // groups, (group + 1) * 4 // groups)
        for unit in range(6 // groups):  # of this group
            torch.testing.assert_close(direction[inputs, unit].norm(), weight[inputs, unit].norm())


def test_a_line_and_bad_requests(make_case: Any) -> None:
    problem = make_case("mlp").problem()
    told: list[tuple[int, int]] = []
    line = loss_surface(
        problem, filter_normalised_directions(problem, 1), points=4, progress=lambda *at: told.append(at)
    )
    assert line.losses.shape == (4, 1)
    assert told[-1] == (4, 4)
    with pytest.raises(MeasurementError, match="shape"):
        loss_surface(problem, torch.zeros(3, 1))
    with pytest.raises(MeasurementError, match="at least 2"):
        loss_surface(problem, torch.zeros(problem.size, 1), points=1)


@pytest.mark.parametrize("radius", [-0.05, math.nan, math.inf])
@pytest.mark.parametrize("sharpness", [sam_sharpness, adaptive_sharpness])
def test_a_radius_is_not_negative(sharpness: Callable[[Problem, float], float], radius: float) -> None:
    problem = make_problem(nn.Linear(2, 2), "mse", (torch.ones(3, 2), torch.ones(3, 2)))
    with pytest.raises(MeasurementError, match="radius"):
        sharpness(problem, radius)


class Grid(nn.Module):
    """A scale and a shift of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.full((2, 3), 10.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x + self.bias


def test_a_bias_is_no_weight_whatever_its_shape() -> None:
    """Nor is what normalises."""
    torch.manual_seed(0)
    middle = nn.LayerNorm((2, 3)), Grid()
    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), *middle, nn.Flatten(), nn.Linear(6, 3))
    report = flatness(make_problem(model, "cross_entropy", (torch.randn(9, 4), torch.arange(9) % 3)))
    assert [layer.weight_norm2 for layer in report.layers] == pytest.approx(
        [model[0].weight.square().sum().item(), 6.0, model[5].weight.square().sum().item()]  # type: ignore[operator]
    )


class Scaled(nn.Module):
    """No parameter of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor([1.0, 0.5, 2.0])), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


def test_a_model_without_weights_has_no_relative_flatness_and_every_other_measure() -> None:
    torch.manual_seed(0)
    problem = make_problem(Scaled(), "cross_entropy", (torch.randn(20, 3), torch.arange(20) % 3))
    report = flatness(problem)
    assert report.layers == ()
    assert report.eigenvalues[0].converged
    assert report.trace.value > report.eigenvalues[0].value > 0
    assert study.measure(problem).relative_top == 0


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2, dtype=torch.cfloat)

    def forward(self, x: Tensor) -> Tensor:
        size: Tensor = self.layer(x.to(self.layer.weight.dtype)).abs()
        return size


def test_complex_biases_do_not_move() -> None:
    problem = make_problem(Complex(), "cross_entropy", (torch.randn(9, 3), torch.arange(9) % 2))
    weight, bias = problem.split(filter_normalised_directions(problem, 1)[:, 0])
    assert not bias.any()
    lengths = torch.linalg.vector_norm(problem.parameters["layer.weight"], dim=(1, 2))
    torch.testing.assert_close(torch.linalg.vector_norm(weight.reshape(2, 3, 2), dim=(1, 2)), lengths)


def far_and_fitted() -> tuple[nn.Linear, Tensor, Tensor]:
    """A regression at its minimum, in float32's numbers, whose loss is ten digits above what a small step adds."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=generator)
    y = 1e4 * (x.sum(1, keepdim=True) + torch.randn(50, 1, generator=generator))
    best = torch.linalg.lstsq(torch.cat([x, torch.ones(50, 1)], 1).double(), y.double()).solution.float()
    model = nn.Linear(3, 1)
    model.load_state_dict({"weight": best[:3].T, "bias": best[3]})
    return model, x, y


def test_sharpness_at_a_minimum_is_not_float32s_rounding() -> None:
    model, x, y = far_and_fitted()
    exact = copy.deepcopy(model).double()

    def loss_of(weight: Tensor, bias: Tensor) -> Tensor:
        return F.mse_loss(x.double() @ weight.T + bias, y.double())

    leaves = [p.detach().requires_grad_() for p in exact.parameters()]
    g = torch.autograd.grad(loss_of(*leaves), leaves)
    theta = [p.detach() for p in leaves]
    length = math.sqrt(sum(float(part.square().sum()) for part in g))
    moved = [(p + 0.05 / length * part).detach() for p, part in zip(theta, g, strict=True)]
    sam = (loss_of(*moved) - loss_of(*theta)).item()
    assert 1e-4 < sam < 1e-2  # of a loss of 1e8
    length = math.sqrt(sum(float((p * part).square().sum()) for p, part in zip(theta, g, strict=True)))
    moved = [(p + 0.5 / length * p.square() * part).detach() for p, part in zip(theta, g, strict=True)]
    problem = make_problem(model, "mse", (x, y))
    assert problem.dtype == torch.float32
    assert sam_sharpness(problem) == pytest.approx(sam, rel=1e-3)
    assert adaptive_sharpness(problem) == pytest.approx((loss_of(*moved) - loss_of(*theta)).item(), rel=1e-3)
    report = flatness(problem, trace_tol=0.1)
    assert report.confirmed
    assert (report.sam_sharpness, report.adaptive_sharpness) == (sam_sharpness(problem), adaptive_sharpness(problem))


def test_where_nothing_runs_in_float64_that_is_said_of_sharpness() -> None:
    problem = make_problem(nn.Linear(3, 2), single, (torch.randn(9, 3), torch.arange(9) % 2))
    with pytest.warns(UserWarning, match="What rounding takes is not known"):
        assert not flatness(problem, trace_tol=0.3).confirmed


KEPT = torch.eye(2)


def single(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that stays in float32."""
    return F.cross_entropy(outputs @ KEPT, targets)
