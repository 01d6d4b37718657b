"""Layers that run on tables and on samples, or on none of them; and normalisers, tokens and weights of other shapes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.activations import forward_pass
from analysis.errors import MeasurementError
from analysis.flatness import flatness
from analysis.problem import make_problem
from analysis.surface import filter_normalised_directions


class OnBoth(nn.Module):
    """One layer on a table that is the same for all samples, and on the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
        self.table: Tensor
        self.register_buffer("table", torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.shared(x) + self.shared(self.table).sum(0))
        return y


def test_a_layer_on_samples_and_on_a_table_counts_each_as_it_is() -> None:
    model = OnBoth().double()
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.arange(7) % 2
    found = forward_pass(make_problem(model, "cross_entropy", (x, y), dtype=torch.float64)).layers["shared"]
    expected = x.square().sum() / 7 + model.table.square().sum()
    assert found.input_norm2 == pytest.approx(float(expected))


class Experts(nn.Module):
    """Each expert sees its samples alone, which may be none."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(3, 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), 2)
        for k, expert in enumerate(self.experts):
            mine = (x[:, 0] > 0) == bool(k)
            out[mine] = expert(x[mine])
        return out


def test_an_expert_counts_its_samples_alone() -> None:
    x = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0, 0] = -1.0
    layers = forward_pass(make_problem(Experts().double(), "cross_entropy", (x, torch.arange(16) % 2))).layers
    for k in range(2):
        mine = x[(x[:, 0] > 0) == bool(k)]
        assert layers[f"experts.{k}"].input_norm2 == pytest.approx(float(mine.square().sum() / 16), rel=1e-6)


class Twice(nn.Module):
    """Called by keyword first, where what enters is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.fc(input=x))
        return y


def test_a_norm_of_which_a_part_is_not_known_is_not_known() -> None:
    layers = forward_pass(make_problem(Twice(), "cross_entropy", (torch.randn(6, 3), torch.arange(6) % 3))).layers
    assert layers["fc"].input_norm2 != layers["fc"].input_norm2
    assert layers["fc"].output_norm2 > 0


def confident(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over the samples of which the model is sure."""
    sure = (outputs.softmax(1).amax(1) > 0.6).to(outputs)
    return (F.cross_entropy(outputs, targets, reduction="none") * sure.detach()).sum(), sure.sum()


def test_a_normaliser_that_depends_on_the_model_is_refused_wherever_it_does() -> None:
    """The first samples may not show it."""
    refused = 0
    for seed in range(8):
        torch.manual_seed(seed)
        x = torch.cat([torch.zeros(4, 5), 3 * torch.randn(60, 5)])
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        with pytest.raises(MeasurementError, match=r"normaliser .* (depend|change)|samples"):
            make_problem(model, confident, (x, torch.arange(64) % 3))
        refused += 1
    assert refused == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [5, 37, 500])
def test_a_normaliser_of_class_weights_is_that_of_the_targets(samples: int, dtype: torch.dtype) -> None:
    """However its sums are rounded."""
    weight = torch.tensor([0.1, 0.7, 0.3], dtype=dtype)

    def weighted(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(outputs, targets, weight=weight, reduction="sum"), weight[targets].sum()

    torch.manual_seed(0)
    x, y, model = torch.randn(samples, 5), torch.randint(3, (samples,)), nn.Linear(5, 3)
    ours = make_problem(model, weighted, (x, y), dtype=dtype)
    torchs = make_problem(model, nn.CrossEntropyLoss(weight=weight), (x, y), dtype=dtype)
    assert ours.normaliser == pytest.approx(torchs.normaliser, rel=1e-6)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.table(tokens))
        return y


TOKENS = torch.randint(9, (5, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("loss", "data", "said"),
    [
        ("cross_entropy", (TOKENS, TOKENS), "input tokens themselves"),
        ("next_token", (TOKENS[:, :-1], TOKENS[:, 1:]), "moved by one already"),
    ],
)
def test_tokens_are_looked_at_however_the_model_is_given_them(loss: str, data: Any, said: str) -> None:
    with pytest.raises(MeasurementError, match=said):
        make_problem(Reader(), loss, data)


def test_what_normalises_is_no_weight_of_whatever_shape() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm((2, 4, 4)), nn.Flatten(), nn.Linear(32, 3))
    problem = make_problem(model, "cross_entropy", (torch.randn(12, 1, 6, 6), torch.arange(12) % 3))
    (moves,) = filter_normalised_directions(problem, count=1).T
    pieces = dict(zip(problem.parameters, problem.split(moves), strict=True))
    assert not pieces["1.weight"].any()
    assert pieces["0.weight"].any()
    assert [layer.name for layer in flatness(problem, max_probes=3).layers] == ["0", "3"]
