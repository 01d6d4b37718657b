"""MAN's penalty and its gradient, against the naive form; and which activations it takes."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from flatlab.federated.man import penalty_terms, square_sum
from flatlab.federated.models import build_model


def naive_cifar_cnn(model: nn.Sequential, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The four activations of the paper's CNN, written out: after ReLU, before pooling."""
    layers = dict(model.named_children())
    a1 = layers["conv1"](x).clamp_min(0)
    a2 = layers["conv2"](F.max_pool2d(a1, 2)).clamp_min(0)
    a3 = layers["fc1"](F.max_pool2d(a2, 2).permute(0, 2, 3, 1).flatten(1)).clamp_min(0)
    a4 = layers["fc2"](a3).clamp_min(0)
    return layers["fc3"](a4), [(a**2).flatten(1).mean(1).mean(0) for a in (a1, a2, a3, a4)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_equals_that_of_the_naive_form_on_the_paper_cnn(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = build_model("cifar-cnn", input_shape=(3, 32, 32), classes=10).double()
    assert isinstance(model, nn.Sequential)
    x = torch.randn(6, 3, 32, 32).double().contiguous(memory_format=memory_format)
    y = torch.arange(6)
    parameters = list(model.parameters())

    logits, taken = penalty_terms(model, x)
    ours = torch.autograd.grad(F.cross_entropy(logits, y) + 0.35 * sum(taken), parameters)
    logits, naive = naive_cifar_cnn(model, x)
    theirs = torch.autograd.grad(F.cross_entropy(logits, y) + 0.35 * sum(naive), parameters)

    assert len(taken) == 4
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-15)


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=50, deadline=None)
def test_square_sum_of_any_layout(shape: list[int], seed: int, order: "object") -> None:
    dims = list(range(len(shape)))
    order.shuffle(dims)  # type: ignore[attr-defined]
    a = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double().permute(dims)
    torch.testing.assert_close(square_sum(a), a.square().sum())


def test_the_gradient_can_be_differentiated_again() -> None:
    """The Hessian of the penalised loss exists too: MAN's own backward is differentiable."""
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).double()
    first = nn.Linear(3, 5).double()
    model = nn.Sequential(first, nn.Tanh(), nn.Linear(5, 2).double())
    weight = first.weight

    def gradient(penalty: Callable[[], Tensor]) -> Tensor:
        (g,) = torch.autograd.grad(penalty(), weight, create_graph=True)
        return torch.autograd.grad(g.square().sum(), weight)[0]

    ours = gradient(lambda: penalty_terms(model, x)[1][0])
    naive = gradient(lambda: torch.tanh(first(x)).square().mean())
    torch.testing.assert_close(ours, naive)


class Functional(nn.Module):
    """Nonlinearities called as functions and methods, and one on the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc[0](x), inplace=True)
        x = self.fc[1](x).relu()
        x = F.softmax(torch.tanh(self.fc[2](x)), dim=1)  # softmax is no activation
        return torch.relu(self.fc[3](x))  # these are the logits


def test_any_module_is_penalised_but_never_the_logits() -> None:
    model = Functional().double()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).double()
    a1 = model.fc[0](x).clamp_min(0)
    a2 = model.fc[1](a1).clamp_min(0)
    a3 = torch.tanh(model.fc[2](a2))
    _, taken = penalty_terms(model, x)
    naive = [a.square().mean() for a in (a1, a2, a3)]
    assert len(taken) == len(naive)
    for ours, theirs in zip(taken, naive, strict=True):
        by_ours, by_theirs = (
            torch.autograd.grad(term, list(model.parameters()), retain_graph=True, materialize_grads=True)
            for term in (ours, theirs)
        )
        torch.testing.assert_close(by_ours, by_theirs)


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [("tiny-convnet", (3, 64, 64), 5), ("resnet18-gn", (3, 32, 32), 17), ("mlp", (1, 8, 8), 2)],
)
def test_one_activation_per_hidden_layer(name: str, shape: tuple[int, int, int], count: int) -> None:
    model = build_model(name, input_shape=shape, classes=7)
    assert len(penalty_terms(model, torch.randn(2, *shape))[1]) == count
