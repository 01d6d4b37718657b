"""Mean squared norms of what enters and leaves a layer, against a plain forward pass."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.activations import forward_pass
from analysis.operators import hessian
from analysis.problem import make_problem
from analysis.spectrum import layer_eigenpairs
from analysis.theory.chain import chain
from analysis.theory.statements import broken


def mean_square(a: Tensor) -> float:
    return a.flatten(1).pow(2).sum(1).mean().item()


def test_convolutions_count_before_pooling_and_the_last_layer_is_raw(make_case: Any) -> None:
    case = make_case("cnn")
    model, x = case.model.double(), case.inputs.double()
    first = F.relu(model[0](x))
    pooled = F.max_pool2d(first, 2)
    second = F.relu(model[3](pooled))
    logits = model[6](second.flatten(1))
    measured = forward_pass(case.problem(chunk_size=2))
    expected = {"0": (x, first), "3": (pooled, second), "6": (second, logits)}
    assert list(measured.layers) == list(expected)
    for name, (entering, leaving) in expected.items():
        assert measured.layers[name].input_norm2 == pytest.approx(mean_square(entering), rel=1e-12)
        assert measured.layers[name].output_norm2 == pytest.approx(mean_square(leaving), rel=1e-12)
    assert measured.loss == pytest.approx(F.cross_entropy(logits, case.targets).item(), rel=1e-12)


def test_a_normalisation_between_layer_and_nonlinearity_is_passed_over(make_case: Any) -> None:
    case = make_case("residual", phi="gelu")
    model, x = case.model.double(), case.inputs.double()
    raw = model.first(x)
    active = F.gelu(model.norm(raw))
    layers = forward_pass(case.problem()).layers
    assert layers["first"].output_norm2 == pytest.approx(mean_square(active))
    assert layers["norm"].input_norm2 == pytest.approx(mean_square(raw))
    assert layers["norm"].output_norm2 == pytest.approx(mean_square(active))
    assert layers["second"].input_norm2 == pytest.approx(mean_square(active))


def test_a_layer_without_a_nonlinearity_is_raw() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Tanh()).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    layers = forward_pass(make_problem(model, "mse", (x, y))).layers
    assert layers["0"].output_norm2 == pytest.approx(mean_square(model[0](x)))
    assert layers["1"].output_norm2 == pytest.approx(mean_square(model(x)))


class Branches(nn.Module):
    """Layers side by side, whose results meet in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.norm, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        met: dict[str, Callable[[], Tensor]] = {
            "gated": lambda: F.silu(a) * b,
            "parallel": lambda: F.relu(a) + torch.tanh(b),
            "beside a linear one": lambda: F.relu(a.view(-1, 2, 2)).flatten(1) + b,
            "shortcut": lambda: F.relu(a + b),
            "normalised shortcut": lambda: F.relu(self.norm(a + b)),
        }
        out: Tensor = self.out(met[self.way]())
        return out


@pytest.mark.parametrize("way", ["gated", "parallel", "beside a linear one", "shortcut", "normalised shortcut"])
def test_a_nonlinearity_counts_for_the_layer_whose_output_it_takes(way: str) -> None:
    model = Branches(way).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    a, b = model.a(x), model.b(x)
    expected = {
        "gated": (F.silu(a), b),
        "parallel": (F.relu(a), torch.tanh(b)),
        "beside a linear one": (F.relu(a), b),
        "shortcut": (a, F.relu(a + b)),  # of the sum, which follows the second
        "normalised shortcut": (a, F.relu(model.norm(a + b))),
    }[way]
    layers = forward_pass(make_problem(model, "mse", (x, y))).layers
    assert [layers[name].output_norm2 for name in ("a", "b")] == pytest.approx([mean_square(part) for part in expected])


class Common(nn.Module):
    """A layer on a table that all samples share, and one that makes the weights of another map."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(2, 4)
        self.query = nn.Linear(3, 4)
        self.maker = nn.Linear(3, 10)
        self.register_buffer("places", torch.linspace(-1, 1, 10).view(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        keys = F.relu(self.table(self.get_buffer("places")))
        weight = self.maker(torch.ones(3, dtype=x.dtype)).view(2, 5)
        made: Tensor = torch.tanh(self.query(x) @ keys.T) @ weight.T
        return made


@pytest.mark.parametrize("chunk_size", [None, 2, 5])
def test_a_layer_that_runs_once_for_all_samples_counts_for_each(chunk_size: int | None) -> None:
    torch.manual_seed(0)
    model = Common().double()
    x, y = torch.randn(10, 3, dtype=torch.float64), torch.randint(2, (10,))
    problem = make_problem(model, "cross_entropy", (x, y), chunk_size=chunk_size)
    layers = forward_pass(problem).layers
    places = model.get_buffer("places")
    assert layers["table"].input_norm2 == pytest.approx(places.square().sum().item())
    assert layers["table"].output_norm2 == pytest.approx(F.relu(model.table(places)).square().sum().item())
    assert layers["maker"].input_norm2 == pytest.approx(3)
    made = model.maker(torch.ones(3, dtype=torch.float64))
    assert layers["maker"].output_norm2 == pytest.approx(made.square().sum().item())
    assert layers["query"].input_norm2 == pytest.approx(mean_square(x))
    dense = hessian(problem)(torch.eye(problem.size, dtype=torch.float64))
    blocks = {"table": slice(0, 12), "query": slice(12, 28), "maker": slice(28, 68)}
    for name, pairs in layer_eigenpairs(problem).items():
        top = torch.linalg.eigvalsh(dense[blocks[name], blocks[name]])[-1].item()
        assert pairs.values[0].item() == pytest.approx(top, rel=1e-3)
    found = chain(problem)
    assert not broken(found.checks)
    assert [layer.name for layer in found.layers if layer.a1 is not None] == ["query"]


def test_what_does_not_run_as_a_module_is_nan(make_case: Any) -> None:
    layers = forward_pass(make_case("attention").problem(), ["attend.out_proj", "embed"]).layers
    assert math.isnan(layers["attend.out_proj"].input_norm2)
    assert layers["embed"].input_norm2 > 0
