"""Losses that are no plain mean: L of all batches is what torch gives on all data at once, or a refusal."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.objective import loss_and_gradient, loss_at
from analysis.operators import fisher, hessian
from analysis.problem import make_problem
from analysis.saturation import lost_share

W = torch.tensor([1.0, 5.0, 20.0])
Batches = list[tuple[Tensor, Tensor]]


def network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def cut(x: Tensor, y: Tensor, sizes: list[int]) -> Batches:
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def dense(model: nn.Module, loss: Callable[[Any, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    names, sizes = zip(*[(name, p.shape) for name, p in model.named_parameters()], strict=True)

    def f(theta: Tensor) -> Tensor:
        pieces = theta.split([size.numel() for size in sizes])
        return loss(
            functional_call(model, {n: t.view(s) for n, t, s in zip(names, pieces, sizes, strict=True)}, (x,)), y
        )

    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    matrix: Tensor = torch.autograd.functional.hessian(f, theta)
    return matrix


def assert_as_on_all_data(model: nn.Module, loss: Any, data: Batches, whole: Callable[[Any, Tensor], Tensor]) -> None:
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    for memory in (1 << 30, 1):
        problem = make_problem(model, loss, data, memory=memory)
        assert loss_at(problem, problem.point()) == pytest.approx(whole(model(x), y).item(), rel=1e-10)
        H = hessian(problem)(torch.eye(problem.size, dtype=torch.float64))
        torch.testing.assert_close(H, dense(model, whole, x, y), rtol=1e-8, atol=1e-10)


LABELS = torch.arange(3).repeat_interleave(4)
SIZES = [4, 1, 3, 4]
CLASSES: dict[str, Any] = {
    "weights": nn.CrossEntropyLoss(weight=W),
    "ignored": nn.CrossEntropyLoss(ignore_index=1),
    "smoothed": nn.CrossEntropyLoss(weight=W, ignore_index=1, label_smoothing=0.2),
    "partial": partial(F.cross_entropy, weight=W.double()),
}


@pytest.mark.parametrize("name", CLASSES)
def test_class_weights_and_ignored_labels_divide_over_all_batches(name: str) -> None:
    """Every batch holds one class, and one batch none that counts."""
    x = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss = CLASSES[name]
    whole = loss.double() if isinstance(loss, nn.Module) else loss
    assert_as_on_all_data(network(), loss, cut(x, LABELS, SIZES), whole)


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(beta=0.3), nn.HuberLoss(delta=0.3), nn.SoftMarginLoss(),
        nn.BCEWithLogitsLoss(pos_weight=W.double()), nn.BCEWithLogitsLoss(weight=W.double()), nn.PoissonNLLLoss(),
        nn.KLDivLoss(reduction="batchmean"), nn.KLDivLoss(), nn.CrossEntropyLoss(weight=W.double()), F.mse_loss,
    ],
    ids=lambda loss: getattr(loss, "__name__", str(loss)),
)  # fmt: skip
def test_means_over_elements(loss: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(8, 5, dtype=torch.float64, generator=generator)
    y = torch.rand(8, 3, dtype=torch.float64, generator=generator)
    assert_as_on_all_data(network(), loss, cut(x, y, [1, 5, 2]), loss)


class Tokens(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.table, self.head, self.last = nn.Embedding(7, 3), nn.Linear(3, 4), last

    def forward(self, ids: Tensor) -> Tensor:
        outputs: Tensor = self.head(torch.tanh(self.table(ids)))
        return outputs if self.last else outputs.movedim(-1, 1)


@pytest.mark.parametrize("last", [False, True], ids=["(N, C, T)", "(N, T, C)"])
def test_padding_that_begins_later(last: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    ids, y = torch.randint(7, (6, 5), generator=generator), torch.randint(4, (6, 5), generator=generator)
    y[3:, 2:] = -100
    torch.manual_seed(0)
    model = Tokens(last).double()

    def whole(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.movedim(-1, 1) if last else outputs, targets)

    def pair(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = outputs.movedim(-1, 1) if last else outputs
        return F.cross_entropy(outputs, targets, reduction="sum"), (targets != -100).sum()

    for loss in ("cross_entropy", pair):
        assert_as_on_all_data(model, loss, cut(ids, y, [2, 1, 3]), whole)
    with pytest.raises(MeasurementError, match="is not the mean"):
        make_problem(model, whole, cut(ids, y, [3, 3]))


@pytest.mark.parametrize("last", [False, True], ids=["(N, C, T)", "(N, T, C)"])
def test_probabilities_of_tokens(last: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(7, (6, 5), generator=generator)
    y = torch.randn(6, 5, 4, generator=generator, dtype=torch.float64).softmax(2)
    torch.manual_seed(0)
    model = Tokens(last).double()
    data = (ids, y if last else y.movedim(2, 1))

    def whole(outputs: Tensor, targets: Tensor) -> Tensor:
        return -(targets * outputs.log_softmax(2 if last else 1)).sum() / 30

    assert_as_on_all_data(model, "cross_entropy", cut(*data, [2, 1, 3]), whole)
    problem, labels = (make_problem(model, "cross_entropy", (ids, t)) for t in (data[1], y.argmax(2)))
    eye = torch.eye(problem.size, dtype=torch.float64)
    torch.testing.assert_close(fisher(problem)(eye), fisher(labels)(eye))
    assert lost_share(problem) > 0


@pytest.mark.parametrize(
    "targets",
    [torch.zeros(2, 4).long(), torch.eye(4).expand(2, 4, 4), 2 * torch.eye(4).expand(2, 4, 4)],
    ids=["labels", "either", "neither"],
)
def test_targets_that_do_not_say_where_the_classes_are(targets: Tensor) -> None:
    with pytest.raises(MeasurementError, match="which dimension holds the classes"):
        make_problem(Tokens(True), "cross_entropy", (torch.zeros(2, 4).long(), targets))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.booleans(), st.sampled_from((1, 1 << 30)))
def test_a_weighted_mean_in_a_closure_is_refused(sizes: list[int], zero_head: bool, memory: int) -> None:
    """Whatever the batches, one class each, also where the loss is log 3 for every sample and any weights."""
    model = network()
    if zero_head:
        nn.init.zeros_(model[2].weight), nn.init.zeros_(model[2].bias)  # type: ignore[index]
    y = torch.cat([torch.full((size,), i % 3) for i, size in enumerate(sizes)])
    x = torch.randn(len(y), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    with pytest.raises(MeasurementError, match="is not the mean"):
        make_problem(model, lambda z, t: F.cross_entropy(z, t, weight=W.double()), cut(x, y, sizes), memory=memory)


X, Y = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5)), torch.arange(12) % 3


@pytest.mark.parametrize(
    ("loss", "reduction", "sizes", "reason"),
    [
        (lambda z, t: F.cross_entropy(z, t), "sum", [1, 11], "is not the sum"),
        (lambda z, t: F.cross_entropy(z, t), "sum", [1] * 12, "is not the sum"),
        (lambda z, t: F.cross_entropy(z, t, reduction="sum"), "mean", [1] * 12, "is not the mean"),
        (F.cross_entropy, "sum", [1, 11], "is not the sum"),
        (nn.CrossEntropyLoss(reduction="sum"), "mean", [1, 11], "is not the mean"),
        (lambda z, t: (F.cross_entropy(z, t), len(t)), "mean", [1, 11], "is not the sum"),
        (lambda z, t: (F.cross_entropy(z, t, reduction="sum"), -1.0), "mean", [1, 11], "must not be negative"),
        (lambda z, t: (F.cross_entropy(z, t, reduction="sum"), z.square().sum()), "mean", [12], "depends on the param"),
        (lambda z, t: (F.cross_entropy(z, t, reduction="sum"), z.detach().square().sum()), "mean", [12], "changes"),
        (nn.CrossEntropyLoss(ignore_index=0, weight=torch.tensor([1.0, 0, 0])), "mean", [12], "none of the targets"),
        (nn.MSELoss(), "mean", [12], "shaped like the outputs"),
        (lambda z, t: z.detach().sum(), "sum", [12], "does not depend"),
    ],
)  # fmt: skip
def test_what_is_not_as_declared(loss: Any, reduction: Any, sizes: list[int], reason: str) -> None:
    with pytest.raises(MeasurementError, match=reason):
        make_problem(network(), loss, cut(X, Y, sizes), reduction=reduction)


def test_batches_of_other_shapes_need_a_normaliser() -> None:
    torch.manual_seed(0)
    model = Tokens(False).double()
    data = [(torch.randint(7, (2, t)), torch.randint(4, (2, t))) for t in (5, 3)]
    with pytest.raises(MeasurementError, match="cannot be run together"):
        make_problem(model, lambda z, t: F.cross_entropy(z, t), data)
    problem = make_problem(model, nn.CrossEntropyLoss(), data)
    expected = sum(F.cross_entropy(model(x), y, reduction="sum") for x, y in data) / 16
    assert loss_at(problem, problem.point()) == pytest.approx(float(expected))


def test_parameters_that_the_loss_closes_over() -> None:
    model = network()
    plain = loss_and_gradient(make_problem(model, "cross_entropy", (X, Y)))
    weight: Tensor = model[0].weight  # type: ignore[index]
    problem = make_problem(model, lambda z, t: F.cross_entropy(z, t) + weight.square().sum(), (X, Y))
    loss, gradient = loss_and_gradient(problem)
    assert loss == pytest.approx(plain[0] + float(weight.detach().square().sum()))
    own = dict(zip(problem.parameters, problem.split(gradient - plain[1]), strict=True))
    torch.testing.assert_close(own.pop("0.weight"), 2 * weight.detach())
    assert all(rest.abs().max() < 1e-6 for rest in own.values())


def test_the_sum_of_a_sum_and_parts_of_a_weighted_mean() -> None:
    loss = nn.CrossEntropyLoss(weight=W)
    problem = make_problem(network(), loss, (X, Y))
    parts = [problem.part(i, 3) for i in range(3)]
    assert sum(part.normaliser for part in parts) == pytest.approx(problem.normaliser) == pytest.approx(4 * 26)
    total = make_problem(network(), nn.CrossEntropyLoss(weight=W, reduction="sum"), (X, Y), reduction="sum")
    assert total.normaliser == 1
    assert loss_at(total, total.point()) == pytest.approx(104 * loss_at(problem, problem.point()))


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int16, torch.int32])
@pytest.mark.parametrize("loss", ["cross_entropy", F.cross_entropy, nn.CrossEntropyLoss(weight=torch.arange(1.0, 201))])
def test_classes_are_whole_numbers_of_any_kind(loss: Any, kind: torch.dtype) -> None:
    x, y = torch.randn(6, 5).double(), torch.tensor([156, 0, 156, 199, 3, 156])  # as a uint8, 156 equals -100
    losses = [
        loss_and_gradient(make_problem(network(200), loss, cut(x, labels, [4, 2]), dtype=torch.float64))[0]
        for labels in (y, y.to(kind))
    ]
    assert losses[0] == losses[1]
