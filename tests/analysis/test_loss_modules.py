"""Losses that are modules: they are copied and converted, together with what they share with the model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.derivatives import gradients
from analysis.operators import hessian
from analysis.problem import make_problem

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
C = torch.tensor([1 + 2j, 2 - 1j, 3j])


class Sparse(nn.Module):
    """Keeps the squares of its activations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.squares = nn.Linear(4, 5), nn.Linear(5, 3), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.a(x))
        self.squares = hidden.square().sum(1).mean()
        logits: Tensor = self.b(hidden)
        return logits


class Decay(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(z, t) + sum((0.5 * p.square().sum() for p in self.held()), z.new_zeros(()))

    def held(self) -> list[Tensor]:
        return list(self.model.parameters())


class DecayOfAList(Decay):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(nn.Identity())
        self.listed = list(model.parameters())

    def held(self) -> list[Tensor]:
        return [p for p in self.listed if isinstance(p, nn.Parameter)]


class Penalty(Decay):
    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        total: Tensor = F.cross_entropy(z, t) + 5 * self.model.squares  # type: ignore[operator]
        return total


class Turned(nn.Module):
    """Takes outputs times a buffer of complex numbers, of which one without imaginary parts is another loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.register_buffer("c", C)

    c: Tensor

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        total: Tensor = (z * self.c).sum(1).abs().square().mean()
        return total


def dense(model: nn.Module, loss: Callable[[Any, Tensor], Tensor], names: list[str]) -> Tensor:
    """The Hessian by the parameters `names`, of the model as it is."""
    parameters = [model.get_parameter(name).requires_grad_() for name in names]
    total = loss(model(X.double()), Y)
    slopes = torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters, create_graph=True)])
    return torch.stack([torch.cat([g.flatten() for g in gradients([slope], parameters)]) for slope in slopes])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", [Decay, DecayOfAList, Penalty, Turned])
def test_a_loss_that_is_a_module_is_what_it_is_by_itself(
    kind: Callable[[nn.Module], nn.Module], wrapped: bool, frozen: bool
) -> None:
    model = Sparse()
    held = nn.DataParallel(model) if wrapped and kind is not Penalty else model
    names = ["a.weight", "b.bias"] if frozen else [name for name, _ in model.named_parameters()]
    loss = kind(held)
    model.requires_grad_(not frozen)
    problem = make_problem(model, loss, (X, Y), dtype=torch.float64, parameters=names)
    double = Sparse().double()
    torch.testing.assert_close(
        hessian(problem)(torch.eye(problem.size, dtype=torch.float64)), dense(double, kind(double), names)
    )
    assert model.a.weight.dtype == torch.float32
    assert all(buffer is C for buffer in loss.buffers())
