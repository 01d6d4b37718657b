"""Gradients and products that are not the loss's, which are symmetric all the same; and kinks, which are no fault."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.operators import hessian
from analysis.problem import make_problem
from tests.analysis.test_products import dense, truth

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.factor * gradients[0], None


class Forgets(torch.autograd.Function):
    """x^2, whose second derivative is taken for zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x.detach() * gradients[0]


class Sigmoidal(torch.autograd.Function):
    """GELU, whose derivative is taken for that of x sigmoid(1.702 x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(1.702 * x)
        return gradients[0] * (s + 1.702 * x * s * (1 - s))


class Sine(torch.autograd.Function):
    """An offset and sin(x + phase), in float32 whatever is asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, phase: float, offset: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.phase = phase
        rounded = np.float32(offset) + np.sin(x.detach().numpy().astype(np.float32) + np.float32(phase))
        return torch.from_numpy(rounded).to(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] * apply(Sine, x, ctx.phase + math.pi / 2, 0.0), None, None


def apply(function: Any, *args: Any) -> Tensor:
    result: Tensor = function.apply(*args)
    return result


def hooked(z: Tensor) -> Tensor:
    if z.requires_grad:
        z.register_hook(lambda gradient: 0.5 * gradient)
    return z


class Net(nn.Module):
    """Two layers with something done to what lies between them, and to the logits."""

    def __init__(
        self, inside: Callable[[Tensor], Tensor] = torch.tanh, logits: Callable[[Tensor], Any] = torch.clone
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inside, self.logits = inside, logits
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.logits(self.head(self.inside(self.first(x))))
        return z


class Rounded(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        return F.linear(x, w + ((4 * w).round() / 4 - w).detach(), self.bias)


def _halved(module: nn.Module, into: Any, out: Any) -> tuple[Tensor, ...]:
    return tuple(0.5 * gradient for gradient in into)


def _backward_hook() -> nn.Module:
    net = Net()
    net.head.register_full_backward_hook(_halved)
    return net


GRADIENTS: dict[str, Callable[[], nn.Module]] = {
    "scaled": lambda: Net(logits=lambda z: apply(Scaled, z, 0.1)),
    "reversed": lambda: Net(logits=lambda z: apply(Scaled, z, -1.0)),
    "hook": lambda: Net(logits=hooked),
    "backward hook": _backward_hook,
    "straight through": lambda: Net(inside=lambda h: h + (h.sign() - h).detach()),
    "rounded weights": lambda: nn.Sequential(Rounded(4, 3), nn.Tanh(), Rounded(3, 3)),
    "a detached norm": lambda: Net(logits=lambda z: z * (1 + z.detach().norm(dim=1, keepdim=True))),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_gradient_that_is_not_the_losss_is_refused(kind: str, dtype: torch.dtype) -> None:
    with pytest.raises(MeasurementError, match=r"not that of the loss|not those of the loss"):
        make_problem(GRADIENTS[kind](), "cross_entropy", (X, Y), dtype=dtype)


def test_a_second_derivative_that_is_forgotten_is_refused() -> None:
    with pytest.raises(MeasurementError, match="The Hessian's products are not those of the loss"):
        make_problem(Net(inside=lambda h: apply(Forgets, h)), "cross_entropy", (X, Y))


SLIGHTLY: dict[str, Callable[[], nn.Module]] = {
    "another's derivative": lambda: Net(inside=lambda h: apply(Sigmoidal, h)),
    "scaled": lambda: Net(inside=lambda h: apply(Scaled, h.tanh(), 1.02)),
    "scaled, kinked": lambda: nn.Sequential(
        *(nn.Linear(4, 200), nn.ReLU(), nn.Linear(200, 4), nn.ReLU(), Net(inside=lambda h: apply(Scaled, h, 1.03)))
    ),
}


def _drawn(model: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", SLIGHTLY)
def test_derivatives_that_are_off_by_little_are_refused(kind: str, dtype: torch.dtype) -> None:
    """Traces are off by some per cent here; along one line a derivative may be right to a quarter of one."""
    for seed in range(6):
        with pytest.raises(MeasurementError, match=r"not that of the loss|not those of the loss"):
            make_problem(_drawn(SLIGHTLY[kind](), seed), "cross_entropy", (X, Y), dtype=dtype)


@pytest.mark.parametrize("offset", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("share", [0.03, 1.0, 30.0])
def test_a_part_in_float32_is_no_fault(share: float, offset: float) -> None:
    model = Net(inside=lambda h: torch.tanh(h) + share * (apply(Sine, h, 0.0, offset) - offset))
    for seed in range(4):
        make_problem(_drawn(model, seed), "cross_entropy", (X, Y), dtype=torch.float64)


def _frozen_below() -> Any:
    class Frozen(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = torch.tanh(self.first(x))
            z: Tensor = self.head(h)
            return z

    return Frozen()


SOUND: dict[str, Callable[[], nn.Module]] = {
    "kinks": lambda: nn.Sequential(nn.Linear(4, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 3)),
    "kinks at zero": lambda: nn.Sequential(_zeroed(nn.Linear(4, 30)), nn.ReLU(), nn.Linear(30, 3)),
    "absolute values": lambda: Net(inside=torch.abs),
    "the largest of some": lambda: Net(inside=lambda h: h.view(len(h), 3, 2).amax(2).repeat(1, 2)),
}


def _zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.bias)
    return layer


def _distances(z: Tensor, y: Tensor) -> Tensor:
    return (z - F.one_hot(y, 3)).abs().sum(1).mean()


def test_a_part_without_gradients_is_measured_as_fixed_and_named() -> None:
    with pytest.warns(UserWarning, match=r"changes with first.weight, first.bias, but has no gradient") as told:
        make_problem(_frozen_below(), "cross_entropy", (X, Y))
    assert len(told) == 1
    frozen = _frozen_below()
    frozen.first.requires_grad_(False)
    make_problem(frozen, "cross_entropy", (X, Y))


@pytest.mark.parametrize("loss", ["cross_entropy", _distances], ids=["smooth", "kinked"])
@pytest.mark.parametrize("kind", SOUND)
def test_kinks_are_no_fault(kind: str, loss: Any) -> None:
    x = X.clone()
    x[::2] = 0  # as a black image is: with a bias of zero all units lie at their kinks
    make_problem(SOUND[kind](), loss, (x, Y))


def test_scales_far_apart_are_no_fault() -> None:
    model = Net()
    with torch.no_grad():
        model.first.weight.mul_(1e4)
        model.head.weight.mul_(1e-4)
    problem = make_problem(model, "cross_entropy", (X, Y), dtype=torch.float64)
    torch.testing.assert_close(dense(hessian(problem)), truth(model.double(), F.cross_entropy, X.double(), Y))


def test_a_model_that_differentiates_in_its_own_parameters_is_measured() -> None:
    """One step of gradient descent within the model, as fast weights and MAML take it."""

    class Adapting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3) / 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                w = self.w.expand(len(x), 4, 3)
                error = torch.einsum("ni,nij->nj", x, w).square().sum()
                (g,) = torch.autograd.grad(error, w, create_graph=True)
                return torch.einsum("ni,nij->nj", x, w - 0.1 * g)

    torch.manual_seed(0)
    model, x, y = Adapting().double(), torch.randn(6, 4).double(), torch.randint(3, (6,))

    def loss(w: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, {"w": w}, (x,)), y)

    exact = torch.autograd.functional.hessian(loss, model.w.detach()).reshape(12, 12)
    operator = hessian(make_problem(model, "cross_entropy", (x, y)))
    torch.testing.assert_close(operator(torch.eye(12, dtype=torch.float64)), exact)


class Pooled(nn.Module):
    """The mean of token embeddings, of padding too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 2)
        nn.init.normal_(self.table.weight)  # of the padding too

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.tanh(self.table(tokens)).mean(1))
        return logits


def test_padding_that_the_loss_changes_with_is_said_to_be_fixed() -> None:
    tokens, labels = torch.tensor([[1, 2, 0], [3, 0, 0], [4, 1, 2]]), torch.tensor([0, 1, 0])
    with pytest.warns(UserWarning, match=r"changes with row 0 of table.weight \(padding_idx\), but has no gradient"):
        make_problem(Pooled().double(), "cross_entropy", (tokens, labels))
    with warnings.catch_warnings(action="error"):
        make_problem(Pooled().double(), "cross_entropy", (tokens.clamp(min=1), labels))
