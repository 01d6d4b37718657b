"""Products on models and losses that are easily measured wrong, each against a dense Hessian without our code."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.overrides import TorchFunctionMode

from analysis.errors import MeasurementError
from analysis.layer_blocks import LayerBlocks
from analysis.objective import loss_and_gradient
from analysis.operators import SymmetricOperator, gauss_newton, hessian
from analysis.problem import Problem, make_problem
from analysis.spectrum import Backend, eigs

Loss = Callable[[Any, Tensor], Tensor]


def dense(operator: SymmetricOperator) -> Tensor:
    return operator(torch.eye(operator.size, dtype=operator.torch_dtype))


def truth(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
    """d^2 L / d theta^2 over the model's parameters in order."""
    model = copy.deepcopy(model)
    names, parameters = zip(*model.named_parameters(), strict=True)
    sizes = [p.numel() for p in parameters]

    def objective(theta: Tensor) -> Tensor:
        pieces = [t.view_as(p) for t, p in zip(theta.split(sizes), parameters, strict=True)]
        return loss(functional_call(model, dict(zip(names, pieces, strict=True)), (x,)), y)

    matrix: Tensor = torch.autograd.functional.hessian(objective, torch.cat([p.detach().flatten() for p in parameters]))
    return matrix


def assert_right(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, expected: Tensor | None = None) -> Problem:
    """Hessian, layers' blocks and gradient, with graphs kept and thrown away."""
    expected = truth(model, loss, x, y) if expected is None else expected
    for memory in (1 << 30, 1):
        problem = make_problem(model, loss, (x, y), memory=memory, chunk_size=2)
        torch.testing.assert_close(dense(hessian(problem)), expected, rtol=1e-9, atol=1e-11)
        blocks = LayerBlocks(problem)
        for name, layer in blocks.layers.items():
            at, where = 0, []
            for full, parameter in problem.parameters.items():
                where += list(range(at, at + parameter.numel())) if full in layer.parameters.values() else []
                at += parameter.numel()
            block = blocks({name: torch.eye(len(where), dtype=torch.float64)})[name]
            torch.testing.assert_close(block, expected[where][:, where], rtol=1e-9, atol=1e-11)
    return problem


# --- weights that are computed


class Standardised(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        flat = w.flatten(1)
        return ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 0.1)).view_as(w)


class Gain(nn.Module):
    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, len(w)))

    def forward(self, w: Tensor) -> Tensor:
        return self.gain.view(-1, *[1] * (w.dim() - 1)) * w


def computed(module: nn.Module, how: str) -> Any:
    if how == "spectral":
        return parametrizations.spectral_norm(module)
    if how == "old spectral":
        return nn.utils.spectral_norm(module)
    if how == "weight norm":
        return parametrizations.weight_norm(module)
    if how == "standardised":
        return parametrize.register_parametrization(module, "weight", Standardised())
    if how == "gain":
        return parametrize.register_parametrization(module, "weight", Gain(module.weight))  # type: ignore[arg-type]
    return module


HOW = ["spectral", "old spectral", "weight norm", "standardised", "gain", "plain"]


@given(
    how=st.tuples(*[st.sampled_from(HOW)] * 3),
    phi=st.sampled_from([nn.Tanh, nn.ReLU, nn.GELU]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=4, deadline=None)
def test_computed_weights(how: tuple[str, str, str], phi: type[nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    body = [computed(nn.Conv2d(1, 2, 2), how[0]), phi(), computed(nn.Conv2d(2, 2, 2), how[1]), phi(), nn.Flatten()]
    model = nn.Sequential(*body, computed(nn.Linear(8, 2), how[2])).double().eval()
    x, y = torch.randn(5, 1, 4, 4).double(), torch.randint(2, (5,))
    loss: Loss = F.cross_entropy
    with PlainWeightNorm():
        expected = truth(model, loss, x, y)
    problem = assert_right(model, loss, x, y, expected)
    kept = dense(gauss_newton(make_problem(model, loss, (x, y), chunk_size=2)))
    torch.testing.assert_close(dense(gauss_newton(problem)), kept, rtol=1e-10, atol=1e-12)


class PlainWeightNorm(TorchFunctionMode):
    """g v / |v| by elementary operations: torch's own has a wrong second derivative on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch._weight_norm:
            return func(*args, **(kwargs or {}))
        v, g, dim = args
        assert dim == 0
        return g * v / v.square().flatten(1).sum(1).sqrt().view_as(g)


# --- layers


def test_a_weight_in_the_loss_where_it_has_no_gradient() -> None:
    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(8, 5), nn.Linear(5, 3)
            self.anchor = nn.Buffer(self.first.weight.detach().clone())

        def forward(self, x: Tensor) -> Any:
            return self.head(torch.tanh(self.first(x))), 5 * (self.first.weight - self.anchor).square().sum()

    torch.manual_seed(0)
    x, y = torch.randn(6, 8).double(), torch.randint(3, (6,))
    model = M().double()
    problem = assert_right(model, lambda o, t: F.cross_entropy(o[0], t) + o[1], x, y)
    assert list(LayerBlocks(problem).suffixes("head"))
    with pytest.raises(MeasurementError):
        LayerBlocks(problem).suffixes("first")
    with pytest.raises(MeasurementError, match="one tensor"):
        gauss_newton(problem)(torch.ones(problem.size))


@pytest.mark.parametrize("how", ["again", "tied", "never"])
def test_a_layer_that_acts_otherwise_on_later_samples_only(how: str) -> None:
    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            if how == "tied":
                self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            late = (x[:, :1] > 1).to(x)
            z = torch.tanh(self.first(x))
            if how == "again" and late.any():
                z = z + late * self.first(z)
            if how == "tied" or (how == "never" and late.any()):
                z = z + late * torch.tanh(self.second(z))
            logits: Tensor = self.head(z)
            return logits

    torch.manual_seed(0)
    x, y = torch.randn(6, 4).double().clamp(max=0.9), torch.randint(3, (6,))
    x[4:, 0] = 2.0
    problem = assert_right(M().double(), F.cross_entropy, x, y)
    assert list(LayerBlocks(problem).suffixes("head"))
    with pytest.raises(MeasurementError):
        LayerBlocks(problem).suffixes("first" if how != "never" else "second")


def test_a_layer_that_is_never_used_has_eigenvalue_zero() -> None:
    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.used(x)
            return logits

    torch.manual_seed(0)
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    backends: tuple[Backend, ...] = ("flatlab", "pyhessian")
    for backend in backends:
        report = eigs(make_problem(M(), "cross_entropy", (x, y)), backend=backend)
        assert [layer.eigenvalues[0].value > 0.01 for layer in report.layers] == [True, False]
        assert report.layers[1].eigenvalues[0].value == pytest.approx(0, abs=1e-6)
    alone = make_problem(M(), "cross_entropy", (x, y), parameters=["unused.weight"])
    assert loss_and_gradient(alone)[1].abs().max() == 0
    for make in (hessian, gauss_newton):
        assert dense(make(alone)).abs().max() == 0


# --- what holds the parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_that_closes_over_the_parameters(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).to(dtype)
    x, y = torch.randn(6, 4).double(), torch.randint(2, (6,))
    expected = truth(copy.deepcopy(model).double(), F.cross_entropy, x, y)

    def decayed(z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(z, t) + 0.5 * torch.cat([p.flatten() for p in model.parameters()]).square().sum()

    problem = make_problem(model, decayed, (x, y), chunk_size=6, dtype=torch.float64)
    decay = torch.eye(len(expected), dtype=torch.float64)
    torch.testing.assert_close(dense(hessian(problem)), expected + decay)
    with pytest.raises(MeasurementError):
        LayerBlocks(problem).suffixes("0")
    with pytest.raises(MeasurementError, match="weight decay"):
        gauss_newton(problem)(torch.ones(problem.size))


def test_a_model_that_reaches_its_parameters_otherwise() -> None:
    """A function made in __init__ belongs to the model that was copied; a list hides a parameter from the modules."""

    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.first, self.head = nn.Parameter(torch.tensor(1.3)), nn.Linear(4, 4), nn.Linear(4, 3)
            self.phi = lambda t: torch.tanh(self.scale * t)
            self.hidden = [self.first.weight]

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.phi(self.first(x)) + F.linear(x, self.hidden[0]))  # type: ignore[no-untyped-call]
            return logits

    torch.manual_seed(0)
    x, y = torch.randn(6, 4).double(), torch.randint(3, (6,))
    model = M().double()

    def plain(theta: Tensor) -> Tensor:
        scale, w, b, v, c = theta.split([1, 16, 4, 12, 3])
        z = torch.tanh(scale * F.linear(x, w.view(4, 4), b)) + F.linear(x, w.view(4, 4))
        return F.cross_entropy(F.linear(z, v.view(3, 4), c), y)

    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    expected: Any = torch.autograd.functional.hessian(plain, theta)
    assert_right(model, F.cross_entropy, x, y, expected)


def test_a_tensor_computed_from_the_parameters_beforehand_is_refused() -> None:
    model = nn.Linear(4, 3)
    decay = torch.cat([p.flatten() for p in model.parameters()]).square().sum()
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    with pytest.raises(MeasurementError, match="computed from them before"):
        make_problem(model, lambda z, t: F.cross_entropy(z, t) + decay, (x, y))
