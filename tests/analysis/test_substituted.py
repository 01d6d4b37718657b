"""Models that look at what stands in for their parameters, or at the types that torch gives by itself."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.objective import loss_at
from analysis.problem import make_problem
from tests.analysis.test_products import assert_right

Kept = Callable[[nn.Parameter], bool]


class Slices(nn.Module):
    """Waves through all weights of a list but the last, which the list itself cuts off."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(5, 4), torch.randn(4, 4), torch.randn(4, 3)])

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights[:-1]:
            x = torch.sin(x @ weight)
        logits: Tensor = x @ self.weights[-1]
        return logits


class Decayed(nn.Module):
    """Returns logits, the last of which holds the squares of all parameters that are as `kept` wants them."""

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept, self.first, self.head = kept, nn.Linear(5, 4), nn.Linear(4, 3)

    def squares(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        return sum((p.square().sum() for p in parameters if self.kept(p)), torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        held = [p for module in (self.first, self.head) for p in module._parameters.values() if p is not None]
        logits: Tensor = self.head(torch.tanh(self.first(x)))
        return logits + self.squares(held) * torch.tensor([0.0, 0.0, 1.0])


class Filled(nn.Module):
    """Writes its logits into a tensor of torch's default type."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), 3)
        logits[:] = self.head(torch.tanh(self.first(x)))
        return logits


class Transformed(nn.Module):
    """Gradients of a small network by its input, taken by torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        slopes = torch.func.vmap(torch.func.grad(lambda one: self.inner(one).square().sum()))(x)
        logits: Tensor = self.head(slopes)
        return logits


class Experts(nn.Module):
    """Three experts' convolutions with ReLU and pooling, all at once by vmap over their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.head = nn.Parameter(torch.randn(3, 2, 1, 2)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        def expert(weight: Tensor) -> Tensor:
            return F.max_pool2d(torch.relu(F.conv1d(x.unsqueeze(1), weight)), (1, 2)).flatten(1)

        logits: Tensor = self.head(torch.func.vmap(expert)(self.weights).sum(0))
        return logits


class Remembers(nn.Module):
    """Keeps what it computed of its weight, for as long as it is in use."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(5, 4)), nn.Linear(4, 3)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.kept is None:
            self.kept = torch.tanh(self.weight)
        logits: Tensor = self.head(torch.tanh(x @ self.kept))
        return logits


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a slice of a list of parameters": Slices,
    "whether it requires a gradient": lambda: Decayed(lambda p: p.requires_grad),
    "whether it is a parameter": lambda: Decayed(lambda p: isinstance(p, nn.Parameter)),
    "torch's default type": Filled,
    "a transform": Transformed,
    "a transform over weights": Experts,
}


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(5, 5).double(), torch.randint(3, (5,))


def by_its_parameters(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """The Hessian (P, P) and the loss, with nothing in the parameters' place."""
    parameters = list(model.parameters())
    loss = F.cross_entropy(model(x), y)
    slopes = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [torch.autograd.grad(slope, parameters, retain_graph=True, materialize_grads=True) for slope in slopes]
    return torch.stack([torch.cat([piece.flatten() for piece in row]) for row in rows]), float(loss.detach())


@pytest.mark.parametrize("name", MODELS)
def test_products_and_losses_are_those_of_the_model(name: str, samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    model = MODELS[name]().double()
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # for the model by itself
    try:
        expected, loss = by_its_parameters(model, x, y)
    finally:
        torch.set_default_dtype(usual)
    assert_right(model, F.cross_entropy, x, y, expected)
    problem = make_problem(model, F.cross_entropy, (x, y))
    assert loss_at(problem, problem.point()) == pytest.approx(loss, rel=1e-12)
    assert torch.get_default_dtype() == usual


def test_a_model_that_computes_something_else_of_stand_ins_is_refused(samples: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(MeasurementError, match="other tensors stand in for its parameters"):
        make_problem(Decayed(lambda p: type(p) is nn.Parameter).double(), F.cross_entropy, samples)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_was_computed_of_a_weight_before_is_no_constant(
    dtype: torch.dtype, samples: tuple[Tensor, Tensor]
) -> None:
    x, y = samples
    model: Any = Remembers().to(dtype).eval()
    make_problem(model, F.cross_entropy, (x.to(dtype), y))
    model(x.to(dtype))
    with pytest.raises(MeasurementError, match="computed from them before"):
        make_problem(model, F.cross_entropy, (x.to(dtype), y))
