"""Worst-case adaptive sharpness against maxima that are known, and what must and must not change it."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.flatness import adaptive_sharpness
from analysis.objective import loss_at
from analysis.problem import Problem, make_problem
from analysis.worst_case import Norm, with_normalised_logits, worst_case_sharpness

NORMS: list[Norm] = ["linf", "l2"]


def line(seed: int = 0, size: int = 6) -> tuple[Problem, Tensor, Tensor, Tensor]:
    """Least squares of a linear model: the problem, its theta, its Hessian, and the gradient."""
    torch.manual_seed(seed)
    model = nn.Linear(size, 1, bias=False).double()
    x, y = torch.randn(20, size, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    theta = model.weight.detach().reshape(-1)
    H = 2 * x.T @ x / 20
    return make_problem(model, "mse", (x, y)), theta, H, H @ theta - 2 * x.T @ y[:, 0] / 20


@pytest.mark.parametrize("seed", range(4))
def test_in_a_box_a_corner_of_a_quadratic_near_the_worst(seed: int) -> None:
    """To find the worst of all corners is hard; far away the ascent may end at another from which it climbs no more."""
    problem, theta, H, g = line(seed)
    for radius, share in ((0.01, 0.999), (0.1, 0.95), (2.0, 0.5)):
        corners = [theta.abs() * torch.tensor(c, dtype=torch.float64) for c in itertools.product((-1, 1), repeat=6)]
        exact = max(float(radius * g @ c + radius**2 * c @ H @ c / 2) for c in corners)
        found = worst_case_sharpness(problem, "linf", radius, batch_size=20).value
        assert share * exact <= found <= exact * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_in_a_ball_the_worst_point_of_a_quadratic(seed: int) -> None:
    """e maximises b.e + e.A e / 2 on the sphere where (mu - A) e = b, mu above all eigenvalues of A (More-Sorensen)."""
    problem, theta, H, g = line(seed)
    A, b = theta.abs()[:, None] * H * theta.abs(), theta.abs() * g
    values, vectors = torch.linalg.eigh(A)
    for radius in (0.05, 0.5, 2.0):
        low, high = float(values[-1]), float(values[-1]) + float(b.norm()) / radius + 1
        for _ in range(200):
            mu = (low + high) / 2
            length = float(((vectors.T @ b) / (mu - values)).norm())
            low, high = (mu, high) if length > radius else (low, mu)
        e = vectors @ ((vectors.T @ b) / (high - values))
        assert float(e.norm()) == pytest.approx(radius, rel=1e-6)
        exact = float(b @ e + e @ A @ e / 2)
        found = worst_case_sharpness(problem, "l2", radius, batch_size=20, steps=40).value
        assert 0.99 * exact <= found <= exact * (1 + 1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_it_climbs_from_an_exact_minimum(norm: Norm) -> None:
    x = torch.eye(4, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    problem = make_problem(model, "mse", (x, model(x).detach()))
    theta = model.weight.detach().reshape(-1)
    greatest = theta.square().sum() / 4 if norm == "linf" else theta.square().max() / 4  # L(theta + d) = |d|^2 / 4
    found = worst_case_sharpness(problem, norm, 0.1, steps=60).value
    assert found == pytest.approx(0.01 * float(greatest), rel=0.05)
    assert found <= 0.01 * float(greatest) * (1 + 1e-9)


def relu_mlp(scale: float = 1.0, outputs: float = 1.0) -> tuple[nn.Module, Tensor, Tensor]:
    """One function for every `scale`, and its multiples by `outputs`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(3, (40,))
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(20):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    factors = {"0.weight": scale, "0.bias": scale, "2.weight": outputs / scale, "2.bias": outputs}
    for name, parameter in model.named_parameters():
        parameter.data *= factors[name]
    return model, x, y


def sharpness(network: tuple[nn.Module, Tensor, Tensor], norm: Norm, radius: float, **options: Any) -> float:
    model, x, y = network
    return worst_case_sharpness(make_problem(model, "cross_entropy", (x, y)), norm, radius, **options).value


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.05), ("l2", 0.5)])
@pytest.mark.parametrize("normalised", [False, True])
def test_rescaling_the_network_changes_nothing(norm: Norm, radius: float, normalised: bool) -> None:
    one, other = (
        sharpness(relu_mlp(scale), norm, radius, batch_size=10, normalised_logits=normalised) for scale in (1.0, 8.0)
    )
    assert other == pytest.approx(one, rel=1e-9)
    assert one > 0


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.05), ("l2", 0.5)])
def test_the_size_of_the_outputs_matters_unless_logits_are_normalised(norm: Norm, radius: float) -> None:
    one, other = (sharpness(relu_mlp(outputs=factor), norm, radius, normalised_logits=True) for factor in (1.0, 10.0))
    assert other == pytest.approx(one, rel=1e-9)
    plain, larger = (sharpness(relu_mlp(outputs=factor), norm, radius) for factor in (1.0, 10.0))
    assert abs(larger / plain - 1) > 0.5


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.2), ("l2", 1.0)])
def test_more_steps_never_give_less(norm: Norm, radius: float) -> None:
    model, x, y = relu_mlp()
    problem = make_problem(model, "cross_entropy", (x, y))
    found = [worst_case_sharpness(problem, norm, radius, steps=n, batch_size=10).values for n in (1, 2, 3, 5, 10, 20)]
    assert all((more >= less).all() for less, more in itertools.pairwise(found))
    assert found[-1].sum() > found[0].sum()


def test_one_step_in_a_ball_of_all_samples_is_adaptive_sharpness() -> None:
    model, x, y = relu_mlp()
    problem = make_problem(model, "cross_entropy", (x, y), chunk_size=7)
    one = worst_case_sharpness(problem, "l2", 0.5, steps=1, batch_size=40)
    assert one.value == pytest.approx(adaptive_sharpness(problem, 0.5))
    assert worst_case_sharpness(problem, "l2", 0.5, batch_size=40).value >= one.value


@pytest.mark.parametrize("norm", NORMS)
def test_in_float32_the_rise_is_still_exact(norm: Norm) -> None:
    """At a radius of 1e-6 losses in float32 differ by rounding alone."""
    model, x, y = relu_mlp()
    fine = worst_case_sharpness(make_problem(model, "cross_entropy", (x, y)), norm, 1e-6)
    coarse = worst_case_sharpness(make_problem(model, "cross_entropy", (x, y), dtype=torch.float32), norm, 1e-6)
    assert coarse.confirmed
    assert 0.9 * fine.value <= coarse.value <= fine.value * (1 + 1e-6)

    weights = torch.ones(3)  # float32, whatever the outputs are

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (F.log_softmax(outputs, 1) @ weights.diag()).gather(1, targets[:, None]).mean().neg()

    kept = worst_case_sharpness(make_problem(model, loss, (x, y), dtype=torch.float32), norm, 0.01)
    assert not kept.confirmed
    assert kept.value > 0


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_the_mean_over_disjoint_batches(norm: Norm) -> None:
    model, x, y = relu_mlp()
    told: list[tuple[int, int]] = []
    problem = make_problem(model, "cross_entropy", [(x[:15], y[:15]), (x[15:], y[15:])])
    found = worst_case_sharpness(problem, norm, 0.05, batch_size=12, progress=lambda *at: told.append(at))
    apart = [sharpness((model, x[i : i + 12], y[i : i + 12]), norm, 0.05) for i in (0, 12, 24)]
    assert found.values.tolist() == pytest.approx(apart)
    assert found.value == pytest.approx(sum(apart) / 3)
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert found.value > sharpness((model, x[:36], y[:36]), norm, 0.05)  # a mean of maxima


@pytest.mark.parametrize("classes_last", [True, False])
def test_logits_of_tokens_are_normalised_class_by_class(classes_last: bool) -> None:
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.factor = 1.0

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.factor * self.head(x)
            return z if classes_last else z.transpose(1, 2)

    model = Tokens().double()
    x, y = torch.randn(6, 5, 4, dtype=torch.float64), torch.randint(3, (6, 5))
    loss: Any = "cross_entropy" if classes_last else nn.CrossEntropyLoss()
    found = []
    for factor in (1.0, 10.0):
        model.factor = factor
        found.append(worst_case_sharpness(make_problem(model, loss, (x, y)), normalised_logits=True).value)
    assert found[1] == pytest.approx(found[0])
    assert found[0] > 0


@dataclass
class Said:
    """Outputs that are an object."""

    logits: Tensor


class Wrapped(nn.Module):
    """A model whose logits come in a mapping, or as an attribute."""

    def __init__(self, model: nn.Module, shape: str) -> None:
        super().__init__()
        self.model = model
        self.shape = shape

    def forward(self, x: Tensor) -> Any:
        logits = self.model(x)
        return {"hidden": 2 * logits, "logits": logits} if self.shape == "mapping" else Said(logits)


@pytest.mark.parametrize("shape", ["mapping", "object"])
@pytest.mark.parametrize("loss", ["cross_entropy", "torch", "next_token"])
def test_logits_in_a_mapping_or_an_object_are_normalised_as_bare_ones(shape: str, loss: str) -> None:
    """And the loss that climbs is that of logits which are normalised by hand."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    sizes = (6, 5) if loss == "next_token" else (6,)
    x, y = torch.randn(*sizes, 4, dtype=torch.float64), torch.randint(3, sizes)
    if loss == "next_token":
        y[0, 3:] = -100
    function: Any = nn.CrossEntropyLoss() if loss == "torch" else loss
    found, expected = (
        worst_case_sharpness(make_problem(own, function, (x, y)), radius=0.1, normalised_logits=True)
        for own in (Wrapped(model, shape), model)
    )
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    z = model(x).detach()
    z = F.normalize(z - z.mean(-1, keepdim=True), dim=-1)
    by_hand = F.cross_entropy(z[:, :-1].flatten(0, 1), y[:, 1:].flatten()) if z.dim() == 3 else F.cross_entropy(z, y)
    problem = with_normalised_logits(make_problem(Wrapped(model, shape), function, (x, y)))
    assert loss_at(problem, problem.point()) == pytest.approx(float(by_hand), rel=1e-12)


def test_what_cannot_be_asked_for() -> None:
    problem, *_ = line()
    with pytest.raises(MeasurementError, match="cross_entropy and next_token alone"):
        worst_case_sharpness(problem, normalised_logits=True)
    for wrong in ({"radius": -1.0}, {"radius": math.nan}, {"steps": 0}, {"batch_size": 0}):
        with pytest.raises(MeasurementError, match="at least one step"):
            worst_case_sharpness(problem, **wrong)
    assert worst_case_sharpness(problem, radius=0.0).value == 0


def test_the_first_sample_may_be_one_that_is_not_counted() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    x, y = torch.randn(6, 4), torch.tensor([-100, 0, 1, 2, 0, 1])
    found, expected = (
        worst_case_sharpness(make_problem(model, "cross_entropy", data), radius=0.01)
        for data in ((x, y), (x[1:], y[1:]))
    )
    assert found.confirmed
    assert found.value == pytest.approx(expected.value, rel=1e-4)
