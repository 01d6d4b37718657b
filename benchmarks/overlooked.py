"""How often a search misses the end of the spectrum it certifies, over thousands of spectra known densely.

Small random networks, of the kinds whose gradient says least about the top: one sample, many labels, a softmax inside,
one of two heads fitted, nearly converged; and diagonal matrices whose start vector has next to no part in the top. Each
matrix is made dense once in float64; every search starts from its gradient, as on a network. A miss is a result that
claims convergence while an eigenvalue lies beyond it by more than the tolerance.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

Loss = Callable[[Tensor], Tensor]
"""theta (p,) -> L."""


@dataclass(frozen=True)
class Spectrum:
    """One matrix, where searches start, and its eigenvalues."""

    kind: str
    matrix: Tensor  # (p, p) float64
    start: Tensor  # (p, 1)
    values: Tensor  # (p,) ascending


def spectra(count: int, seed: int = 0) -> Iterator[Spectrum]:
    """`count` spectra, the kinds taking turns."""
    for index, (kind, make) in zip(range(count), cycle(KINDS.items())):
        torch.manual_seed(seed * 1_000_003 + index)
        matrix, start = make()
        yield Spectrum(kind, matrix, start[:, None], torch.linalg.eigvalsh(matrix))


def _between(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def _network(samples: int, loss: str, steps: int, *, softmax: bool = False) -> tuple[Tensor, Tensor]:
    """An MLP of 50 to 200 parameters after `steps` of gradient descent."""
    inputs, hidden, outputs = _between(4, 9), _between(5, 10), _between(2, 4)
    phi = (nn.Tanh, nn.ReLU, nn.GELU)[_between(0, 2)]
    body = [nn.Linear(inputs, hidden), phi(), nn.Linear(hidden, outputs), *([nn.Softmax(-1)] if softmax else [])]
    x = torch.randn(samples, inputs, dtype=torch.float64)
    targets = {
        "cross_entropy": torch.randint(outputs, (samples,)),
        "mse_loss": torch.randn(samples, outputs, dtype=torch.float64),
        "binary_cross_entropy_with_logits": torch.randint(2, (samples, outputs)).double(),
    }[loss]
    model = nn.Sequential(*body).double()
    return _descended(model, lambda z: getattr(F, loss)(z, targets), x, steps)


def _two_heads() -> tuple[Tensor, Tensor]:
    """A body with two heads, one of which is fitted: its part of the gradient is nearly zero, its curvature is not."""
    x = torch.randn(_between(2, 12), 6, dtype=torch.float64)
    body = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        fitted, other = body(x)[:, :1], torch.randn(len(x), 1, dtype=torch.float64)
    weight = 10.0 ** _between(0, 2)
    return _descended(
        body, lambda z: weight * F.mse_loss(z[:, :1], fitted) + F.mse_loss(z[:, 1:], other), x, _between(0, 3)
    )


def _diagonal() -> tuple[Tensor, Tensor]:
    """A top that the start has 10^-4 to 10^-12 of, above a decaying or a flat rest, negative eigenvalues among it."""
    size = _between(41, 200)
    rest = torch.rand(size - 1, dtype=torch.float64) ** _between(1, 6) * (1 - 2 * (torch.rand(size - 1) < 0.3))
    top = rest.max() * (1 + 10.0 ** -(3 * torch.rand((), dtype=torch.float64)))
    start = torch.cat([10.0 ** -(4 + 8 * torch.rand(1, dtype=torch.float64)), torch.randn(size - 1).double()])
    return torch.diag(torch.cat([top[None], rest])), start


def _descended(model: nn.Module, loss: Loss, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The dense Hessian and the gradient of loss(model(x)) after gradient descent."""
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def at(theta: Tensor) -> Tensor:
        pieces = zip(parameters.items(), theta.split(sizes), strict=True)
        return loss(functional_call(model, {name: piece.view_as(p) for (name, p), piece in pieces}, (x,)))

    theta = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    slope = torch.func.grad(at)
    for _ in range(steps):
        theta = theta - 0.1 * slope(theta)
    matrix = torch.func.hessian(at)(theta)
    return (matrix + matrix.T) / 2, slope(theta)


KINDS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "plain": lambda: _network(_between(5, 30), "cross_entropy", _between(0, 30)),
    "one sample": lambda: _network(1, ("mse_loss", "cross_entropy")[_between(0, 1)], _between(0, 150)),
    "multi-label": lambda: _network(_between(1, 20), "binary_cross_entropy_with_logits", _between(0, 100)),
    "softmax inside": lambda: _network(_between(1, 20), "cross_entropy", _between(0, 100), softmax=True),
    "nearly converged": lambda: _network(_between(1, 4), "mse_loss", _between(300, 600)),
    "two heads": _two_heads,
    "diagonal": _diagonal,
}
