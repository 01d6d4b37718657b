"""Functions written out for their second derivatives: values and gradients are those of torch, products are right."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis import written_out
from analysis.operators import hessian
from analysis.problem import make_problem

Step = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
KNOTS = torch.tensor([-4.0, -3.0, -1.0, 0.0, 1.0, 3.0, 4.0], dtype=torch.float64)
"""Among them the places where a gradient jumps."""


class Middle(nn.Module):
    """Six hidden numbers of three inputs through `step`, and two logits of what it makes of them."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.first, self.step = nn.Linear(3, 6), step
        self.last = nn.Linear(step(torch.zeros(1, 6)).shape[1], 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.step(self.first(x)))
        return logits


def differences(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, step: float = 1e-6) -> Tensor:
    """The Hessian (P, P) by central differences of torch's own gradients."""
    parameters = list(model.parameters())
    at = nn.utils.parameters_to_vector(parameters).detach()

    def gradient(w: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(w, parameters)
        return nn.utils.parameters_to_vector(torch.autograd.grad(loss(model(x), y), parameters, materialize_grads=True))

    shifts = step * torch.eye(len(at), dtype=at.dtype)
    rows = torch.stack([(gradient(at + e) - gradient(at - e)) / (2 * step) for e in shifts])
    nn.utils.vector_to_parameters(at, parameters)
    return rows


def assert_products(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> None:
    truth = differences(model, loss, x, y)
    problem = make_problem(model, loss, (x, y))
    found = torch.stack([hessian(problem)(e) for e in torch.eye(problem.size, dtype=torch.float64)])
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-8)
    assert truth.norm() > 1e-3  # else nothing was compared


def assert_the_same(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor, rtol: float = 1e-12
) -> None:
    """Values and gradients by every input that has one."""
    found, known = ours(*inputs), theirs(*inputs)
    torch.testing.assert_close(found, known)
    wanted = [value for value in inputs if value.requires_grad]
    weights = torch.rand_like(known)
    torch.testing.assert_close(
        torch.autograd.grad(found, wanted, weights), torch.autograd.grad(known, wanted, weights), rtol=rtol, atol=1e-12
    )


def squares(t: Tensor) -> Tensor:
    return t.reshape(len(t), 3, 2)


MIDDLES: dict[str, Step] = {
    "hardsigmoid": lambda t: F.hardsigmoid(3 * t),
    "hardsigmoid in place": lambda t: F.hardsigmoid(3 * t, inplace=True),
    "cdist": lambda t: torch.cdist(squares(t), squares(t).flip(1) + 1).flatten(1),
    "cdist to itself": lambda t: torch.cdist(squares(t), squares(t)).flatten(1),
    "cdist, p = 1": lambda t: torch.cdist(squares(t), squares(t) + 1, p=1.0).flatten(1),
    "cdist, p = 3": lambda t: torch.cdist(squares(t), squares(t) + 1, p=3.0).flatten(1),
}


@pytest.mark.parametrize("step", MIDDLES.values(), ids=MIDDLES)
def test_products_of_models(step: Step) -> None:
    torch.manual_seed(0)
    assert_products(Middle(step).double(), F.cross_entropy, torch.randn(7, 3).double(), torch.randint(2, (7,)))


LISTED = torch.tensor([[0, 1, -1], [2, -1, 0], [-1, 0, 1], [1, 0, 2], [0, 0, -1]])
LOSSES: dict[str, tuple[Loss, Tensor]] = {
    "multi-margin": (F.multi_margin_loss, torch.randint(3, (5,))),
    "multi-margin, p = 2": (nn.MultiMarginLoss(p=2, margin=0.7), torch.tensor([0, 1, 2, 1, 0])),
    "multi-margin, weights": (
        nn.MultiMarginLoss(weight=torch.tensor([1.0, 2.0, 0.5]).double(), reduction="mean"),
        torch.tensor([2, 2, 0, 1, 1]),
    ),
    "multilabel margin": (nn.MultiLabelMarginLoss(), LISTED),
}


@pytest.mark.parametrize("name", LOSSES)
def test_products_of_losses(name: str) -> None:
    torch.manual_seed(0)
    loss, y = LOSSES[name]
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    assert_products(model, loss, torch.randn(5, 4).double(), y)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 0, -1])
def test_products_of_embedding_bags(mode: str, padding: int | None) -> None:
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(5, 3, mode=mode, padding_idx=padding)
    model = nn.Sequential(bag, nn.Tanh(), nn.Linear(3, 2)).double()
    bags = torch.tensor([[0, 1, 2], [4, 4, 4], [0, 0, 0], [3, 1, 0], [2, 4, 3], [1, 1, 2]])
    assert_products(model, F.cross_entropy, bags, torch.randint(2, (6,)))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 0, -1])
def test_embedding_bags_are_those_of_torch(mode: str, padding: int | None) -> None:
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    bags = torch.tensor([[0, 1, 2], [4, 4, 4], [0, 0, 0], [3, 1, 0]])
    shares = torch.rand(4, 3, dtype=torch.float64, requires_grad=True) if mode == "sum" else None
    given = (weight,) if shares is None else (weight, shares)
    assert_the_same(
        lambda weight, shares=None: written_out.embedding_bags(bags, weight, mode, shares, padding),
        lambda weight, shares=None: F.embedding_bag(
            bags, weight, mode=mode, per_sample_weights=shares, padding_idx=padding
        ),
        *given,
    )


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0, 3.0, torch.inf])
@pytest.mark.parametrize("dimensions", [(), (2,), (2, 1)])
def test_distances_are_those_of_torch(p: float, dimensions: tuple[int, ...]) -> None:
    a = torch.randn(*dimensions, 4, 2, dtype=torch.float64, requires_grad=True)
    b = torch.cat([a.detach()[..., :1, :], torch.randn(*dimensions, 2, 2, dtype=torch.float64)], -2).requires_grad_()
    assert_the_same(lambda a, b: written_out.cdist(a, b, p), lambda a, b: torch.cdist(a, b, p), a, b)


def test_values_and_gradients_are_those_of_torch_where_they_jump() -> None:
    line = KNOTS.clone().requires_grad_()
    assert_the_same(
        written_out.hardsigmoid, F.hardsigmoid, line, rtol=1e-7
    )  # torch's sixth is float32's, in float64 too
    scores = torch.stack([KNOTS[:5], KNOTS[2:]], 1).requires_grad_()
    labels = torch.tensor([0, 1, 1, 0, 1])
    for p in (1, 2):
        for reduction in ("none", "mean", "sum"):
            assert_the_same(
                lambda s, p=p, r=reduction: written_out.multi_margin_loss(s, labels, p, reduction=r),
                lambda s, p=p, r=reduction: F.multi_margin_loss(s, labels, p, reduction=r),
                scores,
            )
    many = torch.randint(-2, 3, (5, 3)).double().requires_grad_()
    for reduction in ("none", "mean", "sum"):
        assert_the_same(
            lambda s, r=reduction: written_out.multilabel_margin_loss(s, LISTED, reduction=r),
            lambda s, r=reduction: F.multilabel_margin_loss(s, LISTED, reduction=r),
            many,
        )


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 1])
@pytest.mark.parametrize("last", [False, True])
def test_products_of_bags_between_offsets(mode: str, padding: int | None, last: bool) -> None:
    """Of unequal lengths, one of them empty, as a model makes of rows what its bags are."""

    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(5, 3, mode=mode, padding_idx=padding, include_last_offset=last)
            self.head = nn.Linear(3, 2)

        def forward(self, rows: Tensor) -> Tensor:
            kept = rows >= 0
            ends = kept.sum(1).cumsum(0)
            offsets = torch.cat([torch.zeros_like(ends[:1]), ends if last else ends[:-1]])
            shares = torch.ones_like(rows[kept], dtype=self.head.weight.dtype) / 2 if mode == "sum" else None
            logits: Tensor = self.head(torch.tanh(self.bag(rows[kept], offsets, shares)))
            return logits

    torch.manual_seed(0)
    rows = torch.tensor([[0, 1, 2], [4, 4, -1], [-1, -1, -1], [3, -1, -1], [2, 4, 3], [1, 1, 2]])
    model = Bags().double()
    given = torch.tensor([0, 1, 2, 4, 4, 3]), torch.tensor([0, 3, 3, 6 if last else 5])
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    at, inside = written_out.bags_between(given[1], 6, last)
    assert_the_same(
        lambda w: written_out.embedding_bags(given[0][at], w, mode, None, padding, inside),
        lambda w: F.embedding_bag(given[0], w, given[1], mode=mode, padding_idx=padding, include_last_offset=last),
        weight,
    )
    assert_products(model, F.cross_entropy, rows, torch.randint(2, (6,)))
