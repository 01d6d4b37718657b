"""Models whose class has methods of its own in place of those of nn.Module that tell or set what it holds."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.problem import make_problem
from tests.analysis.test_products import assert_right, truth

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
Y = torch.arange(6) % 3


class Plain(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(), nn.Linear(5, 3))


class GivesTheHead(Plain):
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self[3].parameters(recurse)


class NamesTheHead(Plain):
    def named_parameters(self) -> Any:  # type: ignore[override]
        return self[3].named_parameters()


class NamesNoBuffers(Plain):
    def named_buffers(self) -> Any:  # type: ignore[override]
        return iter(())


class ReturnsNothing(Plain):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)

    def eval(self) -> Any:
        super().eval()

    def to(self, *args: Any, **kwargs: Any) -> Any:
        super().to(*args, **kwargs)

    def double(self) -> Any:
        super().double()

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        super().requires_grad_(requires_grad)


class KeepsItsState(Plain):
    def state_dict(self) -> Any:  # type: ignore[override]
        return {}


OWN: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind for kind in (GivesTheHead, NamesTheHead, NamesNoBuffers, ReturnsNothing, KeepsItsState)
}


@pytest.mark.parametrize("inside", [False, True], ids=["whole", "part"])
@pytest.mark.parametrize("kind", OWN)
def test_methods_of_their_own(kind: str, inside: bool) -> None:
    model: nn.Module = OWN[kind]()
    plain: nn.Module = Plain()
    if inside:
        model, plain = nn.Sequential(model, nn.Linear(3, 3)), nn.Sequential(plain, nn.Linear(3, 3))
        model[1].load_state_dict(plain[1].state_dict())
    for module in (model, plain):
        module._apply(Tensor.double)
        module.eval()
    problem = assert_right(model, F.cross_entropy, X, Y, truth(plain, F.cross_entropy, X, Y))
    assert problem.size == truth(plain, F.cross_entropy, X, Y).shape[0]


def test_a_loss_whose_to_returns_nothing() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Buffer(torch.tensor([1.0, 2.0, 3.0]))

        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(z * self.weight, y)

        def to(self, *args: Any, **kwargs: Any) -> Any:
            super().to(*args, **kwargs)

    model = Plain().double().eval()
    weights = torch.tensor([1.0, 2.0, 3.0]).double()
    expected = truth(model, lambda z, y: F.cross_entropy(z * weights, y), X, Y)
    assert_right(model, Weighted(), X, Y, expected)


def test_a_train_that_is_another_thing_is_named() -> None:
    class Trains(Plain):
        def train(self) -> Any:  # type: ignore[override]
            raise AssertionError

    with pytest.raises(MeasurementError, match=r"own train\(\) cannot set its mode"):
        make_problem(Trains(), "cross_entropy", (X, Y))
