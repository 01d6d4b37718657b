"""What a problem accepts, what it refuses, and that the caller's model stays as it was."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from analysis.errors import MeasurementError
from analysis.memory import graph_bytes_per_sample
from analysis.operators import hessian
from analysis.problem import make_problem


def product(problem: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return hessian(problem)(torch.randn(problem.size, dtype=torch.float64, generator=generator))


def test_batches_are_weighted_by_their_size(make_case: Any) -> None:
    case = make_case("cnn", phi="tanh")
    x, y = case.inputs, case.targets
    whole = product(case.problem())
    uneven = [(x[:1], y[:1]), (x[1:6], y[1:6]), (x[6:], y[6:])]
    loader = DataLoader(TensorDataset(x, y), batch_size=3)

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        yield from uneven

    for data in (uneven, loader, stream(), tuple(uneven)):
        torch.testing.assert_close(product(case.problem(data=data, memory=1)), whole)


def test_a_loader_that_shuffles_gives_the_same_sum_and_an_augmenting_one_is_refused(make_case: Any) -> None:
    case = make_case("mlp")
    shuffled = DataLoader(TensorDataset(case.inputs, case.targets), batch_size=3, shuffle=True)
    torch.testing.assert_close(product(case.problem(data=shuffled, memory=1)), product(case.problem()))

    class Noisy:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield case.inputs + torch.randn_like(case.inputs), case.targets

    operator = hessian(case.problem(data=Noisy(), memory=1))
    v = torch.ones(operator.size, dtype=torch.float64)
    with pytest.raises(MeasurementError, match="data changed"):
        operator(v)


def test_several_inputs_by_position_and_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            outputs: Tensor = torch.tanh(self.left(a)) * self.right(b)
            return outputs

    torch.manual_seed(0)
    a, b, y = torch.randn(5, 3), torch.randn(5, 4), torch.randn(5, 2)
    forms = [((a, b), y), [(a, b, y)], [({"a": a, "b": b}, y)], [(a[:2], b[:2], y[:2]), (a[2:], b[2:], y[2:])]]
    model = Two()
    products = [product(make_problem(model, "mse", form, dtype=torch.float64)) for form in forms]
    for other in products[1:]:
        torch.testing.assert_close(other, products[0])


def test_the_callers_model_is_untouched(make_case: Any) -> None:
    case = make_case("residual")
    case.model.train()
    case.model.first.weight.grad = torch.ones_like(case.model.first.weight)
    case.model.head.requires_grad_(False)
    before = {name: p.clone() for name, p in case.model.named_parameters()}
    product(case.problem())
    assert case.model.training
    assert case.model.first.weight.dtype == torch.float32
    assert (case.model.first.weight.grad == 1).all()
    assert case.model.second.weight.grad is None
    assert not case.model.head.weight.requires_grad
    assert all((p == before[name]).all() for name, p in case.model.named_parameters())


def test_cached_and_streamed_graphs_agree_and_keep_to_the_budget(make_case: Any) -> None:
    case = make_case("cnn")
    one = graph_bytes_per_sample(case.problem(), ((case.inputs,), case.targets))
    everything, some, nothing = (case.problem(chunk_size=2, memory=m) for m in (1 << 30, 8 * one, 1))
    assert everything.cached_samples >= 7
    assert 0 < some.cached_samples < 7
    assert nothing.cached_samples == 0
    for other in (some, nothing):
        torch.testing.assert_close(product(other), product(everything))


def test_chunks_of_a_batch_are_few_and_none_is_larger_than_it_must_be() -> None:
    x, y = torch.randn(23, 4), torch.arange(23)
    problem = make_problem(nn.Linear(4, 23), "cross_entropy", [(x[:9], y[:9]), (x[9:], y[9:])], chunk_size=4)
    chunks = list(problem.chunks())
    assert [len(chunk.targets) for chunk in chunks] == [3, 3, 3, 4, 4, 4, 2]
    assert torch.equal(torch.cat([chunk.targets for chunk in chunks]), y)


def test_chunks_grow_with_the_budget(make_case: Any) -> None:
    sizes = [make_case("cnn").problem(memory=m).chunk_size for m in (1, 10_000, 1 << 30)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] >= 7


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.line(x)
        return x - x.mean(0)


class MixedByCurvature(nn.Module):
    """Samples that share nothing but second derivatives."""

    def forward(self, x: Tensor) -> Tensor:
        change = x - x.detach()
        return x + change * change.roll(1, 0)


class AlmostCentred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - 1e-4 * x.mean(0)


X, Y = torch.arange(24.0).reshape(6, 4) / 10, torch.tensor([0, 1, 0, 0, 1, 1])


def with_(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 2), *modules)


class AlwaysDropped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (with_(nn.BatchNorm1d(2)), {"mode": "train"}, "batch statistics"),
        (with_(nn.BatchNorm1d(2, track_running_stats=False)), {}, "batch statistics"),
        (with_(nn.Dropout(0.5)), {"mode": "train"}, "Dropout is random"),
        (with_(AlwaysDropped()), {}, "another loss each time"),
        (BatchStatistics(), {}, "influence one another"),
        (with_(MixedByCurvature()), {}, "influence one another, so that L is no sum"),
        (with_(AlmostCentred()), {"dtype": torch.float64}, r"but (1\.00|0\.999)\d*[1-9] times that"),
        (with_(), {"loss": lambda z, y: F.cross_entropy(z, y, reduction="sum")}, "is not the mean"),
        (with_(), {"reduction": "sum", "loss": F.cross_entropy}, "is not the sum"),
        (with_(), {"loss": lambda z, y: F.cross_entropy(z, y, weight=torch.tensor([1.0, 5.0]))}, "is not the mean"),
        (with_(), {"loss": lambda z, y: F.cross_entropy(z, y, reduction="none")}, "scalar"),
        (with_(), {"loss": lambda z, y: z.sum() * torch.nan}, "finite"),
        (with_(), {"loss": "hinge"}, "cross_entropy, mse"),
        (with_(), {"parameters": ["0.wieght"]}, "no parameter '0.wieght'"),
        (with_(), {"parameters": []}, "No parameter is selected"),
        (with_().requires_grad_(False), {}, "No parameter is selected"),
        (nn.ReLU(), {}, "no parameters"),
        (with_(), {"data": []}, "no samples"),
        (with_(), {"data": (X, Y[:5])}, "as many samples"),
        (with_(), {"data": 3}, "iterable"),
        (with_(), {"data": [X]}, "targets"),
    ],
)
def test_what_has_no_hessian_is_refused_with_the_reason(model: nn.Module, options: dict[str, Any], reason: str) -> None:
    options = {"loss": "cross_entropy", "data": (X, Y)} | options
    with pytest.raises(MeasurementError, match=reason) as caught:
        make_problem(model, options.pop("loss"), options.pop("data"), **options)
    assert "\n" not in str(caught.value)


def by_weight(z: Tensor, y: Tensor) -> Tensor:
    """A mean over the samples' weights, of which every batch has another sum."""
    return (F.cross_entropy(z, y, reduction="none") * (1 + 4 * y)).sum() / (1 + 4 * y).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unit", [1e-20, 1e-7, 1e7])
@pytest.mark.parametrize(
    ("model", "loss", "reason"),
    [
        (with_(), by_weight, "is not the mean"),
        (BatchStatistics(), F.cross_entropy, "influence one another"),
        (with_(AlwaysDropped()), F.cross_entropy, "another loss each time"),
    ],
)
def test_a_loss_is_refused_in_any_unit(model: nn.Module, loss: Any, reason: str, unit: float, dtype: Any) -> None:
    torch.manual_seed(0)  # few masks of dropout could be the same twice
    data = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    with pytest.raises(MeasurementError, match=reason):
        make_problem(model, lambda z, y: unit * loss(z, y), data, dtype=dtype)


def in_unit(unit: float, loss: Any, z: Tensor, y: Tensor) -> Tensor:
    found: Tensor = unit * loss(z, y)
    return found


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("seed", range(2))
def test_rounding_in_what_is_left_of_a_loss_is_no_reason(seed: int, unit: float) -> None:
    """Targets that are met to rounding, sure predictions, losses of both signs that cancel, and none at all."""
    torch.manual_seed(seed)
    x = torch.randn(24, 8)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    sure = nn.Linear(8, 3)
    sure.weight.data *= 20
    signs = torch.ones(24, 3)
    signs[1::2] = -1
    for model, loss, inputs, targets in (
        (net, F.mse_loss, x, net(x).detach() * (1 + 1e-6)),
        (sure, F.cross_entropy, x, sure(x).argmax(1)),
        (net, lambda z, y: (z.square() * y).mean(), x[::2].repeat_interleave(2, 0), signs),
        (net, lambda z, y: 0 * F.mse_loss(z, y), x, signs),
    ):
        problem = make_problem(model, partial(in_unit, unit, loss), (inputs, targets), memory=1, chunk_size=8)
        product(problem)
        product(problem)  # a second pass, whose loss is compared with that of the first


def test_batch_norm_with_running_statistics_and_dropout_in_eval_mode_are_fine() -> None:
    model = with_(nn.BatchNorm1d(2), nn.Dropout(0.5))
    assert product(make_problem(model, "cross_entropy", (X, Y), dtype=torch.float64)).isfinite().all()


def test_a_loss_that_overflows_later_names_itself() -> None:
    x = torch.cat([X, torch.full((1, 4), torch.inf)])
    with pytest.raises(MeasurementError, match="finite"):
        product(make_problem(with_(), "cross_entropy", (x, torch.cat([Y, Y[:1]])), dtype=torch.float64))


def test_a_named_loss_follows_the_reduction() -> None:
    model = with_()
    mean = make_problem(model, "cross_entropy", (X, Y), dtype=torch.float64)
    total = make_problem(model, "cross_entropy", (X, Y), dtype=torch.float64, reduction="sum")
    torch.testing.assert_close(product(total), 6 * product(mean))


@pytest.mark.parametrize("memory", [1 << 20, 1 << 26, 1 << 30])
def test_chunks_are_large_beside_the_parameters_and_small_beside_the_memory(memory: int) -> None:
    """Every chunk costs work on vectors of the parameters' size; a quarter of the memory leaves room for graphs."""
    x, y = torch.randn(64, 900), torch.randint(900, (64,))
    problem = make_problem(nn.Sequential(nn.Linear(900, 900), nn.Tanh()), "cross_entropy", (x, y), memory=memory)
    graph = problem.chunk_size * graph_bytes_per_sample(problem, ((x,), y))
    wanted = max(40 << 20, 12 * 4 * problem.size)
    assert graph <= wanted
    assert graph <= memory // 2
    assert graph > 0.9 * min(wanted, memory // 4)
