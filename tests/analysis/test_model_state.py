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


class SetByItsFirstSamples(nn.Module):
    """Takes off the mean of the first samples that it meets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(4, 3), nn.Linear(3, 3)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("set", torch.tensor(False))

    mean: Tensor
    set: Tensor

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        if not self.set:
            self.mean.copy_(hidden.detach().mean(0))
            self.set.fill_(True)
        logits: Tensor = self.head((hidden - self.mean).square())
        return logits


class SetInATensorOfItsOwn(SetByItsFirstSamples):
    """The same, where nothing is registered as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        mean, done = self.mean, self.set
        del self.mean, self.set
        self.mean, self.set = mean, done


@pytest.mark.parametrize("samples", [1, 12])
@pytest.mark.parametrize("kind", [SetByItsFirstSamples, SetInATensorOfItsOwn])
def test_a_model_that_its_first_samples_set_is_refused_until_they_have(kind: type[Any], samples: int) -> None:
    model = kind()
    with pytest.raises(MeasurementError, match=r"\(mean, set\) when it runs.* run it once on data before"):
        make_problem(model, "cross_entropy", (X[:samples], Y[:samples]))
    model(X)
    means = [
        eigs(make_problem(model, "cross_entropy", (X[order], Y[order]), dtype=torch.float64)).eigenvalues[0].value
        for order in (torch.arange(12), torch.arange(12).flip(0))
    ]
    assert means[0] == pytest.approx(means[1], rel=1e-9)


class Counts(nn.Module):
    """Counts its runs and follows a mean, without computing with either, and writes down its activations' squares."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(4, 3), nn.Linear(3, 3)
        self.register_buffer("runs", torch.tensor(0))
        self.register_buffer("mean", torch.full((3,), torch.nan))
        self.register_buffer("squares", torch.zeros(()))

    runs: Tensor
    mean: Tensor
    squares: Tensor

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        self.runs += 1
        self.mean.nan_to_num_().lerp_(hidden.detach().mean(0), 0.1)
        self.squares.copy_(hidden.square().sum(1).mean())
        logits: Tensor = self.head(hidden)
        return logits


class Returns(nn.Sequential):
    """Its logits, and the squares of its hidden activations."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self[1](self[0](x))
        return self[2](hidden), hidden.square().sum(1).mean()


def test_buffers_that_a_model_only_writes_hinder_nothing_and_are_the_losss_to_read() -> None:
    def top(model: nn.Module, loss: Any) -> float:
        return eigs(make_problem(model, loss, (X, Y)), layers=[]).eigenvalues[0].value  # confirmed by a copy in float64

    model = Counts()
    plain = Returns(model.first, nn.Tanh(), model.head)
    assert top(model, "cross_entropy") == pytest.approx(top(plain, lambda z, t: F.cross_entropy(z[0], t)))
    found = top(model, lambda z, t: F.cross_entropy(z, t) + model.squares)
    assert found == pytest.approx(top(plain, lambda z, t: F.cross_entropy(z[0], t) + z[1]))
    assert model.runs == model.squares == 0
    assert model.mean.isnan().all()
