"""Convolutions with complex weights against dense Hessians in pairs of real numbers."""

from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from analysis.problem import make_problem
from tests.analysis.test_products import assert_right

KINDS = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


class Spectral(nn.Module):
    """A complex convolution, magnitudes, a real layer."""

    def __init__(self, kind: type[nn.Module], dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = kind(1, 2, 2, dtype=dtype.to_complex())
        self.head = nn.Linear(2, 3, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.first(torch.complex(x, x.roll(1, -1))).abs().tanh()
        logits: Tensor = self.head(h.flatten(2).mean(2))
        return logits


@pytest.mark.parametrize("kind", KINDS)
def test_complex_convolutions(kind: type[nn.Module]) -> None:
    dimensions = int(kind.__name__[-2])
    x = torch.randn(5, 1, *[3] * dimensions, generator=torch.Generator().manual_seed(0)).double()
    y, model = torch.arange(5) % 3, Spectral(kind, torch.float64)
    own = dict(model.named_parameters())
    real = {name: torch.view_as_real(p.detach()) if p.is_complex() else p.detach() for name, p in own.items()}

    def loss(theta: Tensor) -> Tensor:
        pieces = zip(theta.split([prod(p.shape) for p in real.values()]), real.items(), strict=True)
        shaped = {name: piece.view(p.shape) for piece, (name, p) in pieces}
        given = {name: torch.view_as_complex(p) if own[name].is_complex() else p for name, p in shaped.items()}
        return F.cross_entropy(functional_call(model, given, (x,)), y)

    exact = torch.autograd.functional.hessian(loss, torch.cat([p.flatten() for p in real.values()]))
    assert_right(model, F.cross_entropy, x, y, exact)
    make_problem(Spectral(kind, torch.float32), "cross_entropy", (x.float(), y))
