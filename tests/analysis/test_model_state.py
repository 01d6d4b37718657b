"""Models that keep what they computed, and models that change their own weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.operators import hessian
from analysis.problem import make_problem
from analysis.spectrum import eigs

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


class Plain(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.halved(), self.bias)

    def halved(self) -> Tensor:
        return 0.5 * self.weight


class InAnAttribute(Plain):
    kept: Tensor | None = None

    def halved(self) -> Tensor:
        if self.kept is None:
            self.kept = super().halved()
        return self.kept


class InADictionary(Plain):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.kept: dict[Any, Tensor] = {}

    def halved(self) -> Tensor:
        if self.training:
            return super().halved()
        return self.kept.setdefault(self.weight.device, super().halved())


class InABuffer(Plain):
    def halved(self) -> Tensor:
        if not hasattr(self, "kept"):
            self.register_buffer("kept", super().halved(), persistent=False)
        kept = self.kept
        assert isinstance(kept, Tensor)
        return kept


def network(first: type[Plain]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(first(4, 3), nn.Tanh(), nn.Linear(3, 3))


@pytest.mark.parametrize("layers", [None, []], ids=["layers", "whole"])
@pytest.mark.parametrize("kind", [InAnAttribute, InADictionary, InABuffer])
def test_what_is_kept_from_a_run_is_no_constant_in_the_next(kind: type[Plain], layers: list[str] | None) -> None:
    def measured(model: nn.Module) -> Any:
        problem = make_problem(model, "cross_entropy", (X, Y), dtype=torch.float64)
        return hessian(problem)(torch.eye(problem.size, dtype=torch.float64)), eigs(problem, 2, layers=layers)

    (expected, there), (found, here) = measured(network(Plain)), measured(network(kind))
    torch.testing.assert_close(found, expected)
    assert [value.value for value in here.eigenvalues] == pytest.approx([value.value for value in there.eigenvalues])
    assert [layer.eigenvalues[0].value for layer in here.layers] == pytest.approx(
        [layer.eigenvalues[0].value for layer in there.layers]
    )


class Rescales(nn.Linear):
    """Keeps its rows within a norm, as EEGNet does."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.3)
        return super().forward(x)


class CopiesOver(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.copy_(self.weight.clamp(-0.1, 0.1))
        return super().forward(x)


class Once(nn.Linear):
    """Divides its weights in its first run, as RWKV does."""

    done = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.done:
            with torch.no_grad():
                self.weight.div_(2)
            self.done = True
        return super().forward(x)


@pytest.mark.parametrize("selected", [None, ["0.weight"], ["2.weight"]])
@pytest.mark.parametrize("kind", [Rescales, CopiesOver, Once])
def test_a_model_that_changes_its_weights_is_refused(kind: type[nn.Linear], selected: list[str] | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(4, 3), nn.Tanh(), nn.Linear(3, 3))
    before = model.state_dict()["0.weight"].clone()
    with pytest.raises(MeasurementError, match=r"changes its weights \(0.weight\) when it runs"):
        make_problem(model, "cross_entropy", (X, Y), parameters=selected)
    assert model.state_dict()["0.weight"].equal(before)
