"""What must be known of the network behind a layer for the statements P and A3."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import vjp

from analysis.eigenvalue import listed
from analysis.lanczos import lanczos
from analysis.operators import SymmetricOperator
from analysis.theory.extent import above
from analysis.theory.statements import Interval, exactly

_TOL = 1e-3
_LINEAR = (nn.Linear, nn.Conv2d)
_PIECEWISE_LINEAR = (*_LINEAR, nn.Identity, nn.ReLU, nn.LeakyReLU, nn.MaxPool2d)


def modules_after(model: nn.Module, layer: str) -> list[nn.Module] | None:
    """The modules through which the layer's output goes on to the loss; None unless `model` is a chain of modules."""
    if type(model) is not nn.Sequential:
        return None
    names = list(model._modules)  # with modules that are used twice, which `named_children` leaves out
    return list(model)[names.index(layer) + 1 :] if layer in names else None


def is_piecewise_linear(modules: Sequence[nn.Module]) -> bool:
    """Whether the modules, one after the other, are a piecewise-linear map."""
    return all(type(module) in _PIECEWISE_LINEAR or _rearranges(module) for module in modules)


def squared_lipschitz(modules: Sequence[nn.Module], s: Tensor) -> Interval | None:
    """The product of the squared spectral norms of the modules' matrices; None where another map stretches too.

    `s` (n, ...) is what enters the first module. ReLU and max pooling whose windows do not overlap stretch nothing.
    """
    bound = exactly(1.0)
    for module in modules:
        if type(module) in _LINEAR:
            norm = _squared_norm(module, s[:1])
            bound = Interval(bound.low * norm.low, bound.high * norm.high)
        elif not _is_one_lipschitz(module):
            return None
        with torch.no_grad():
            s = module(s[:1])
    return bound


def _is_one_lipschitz(module: nn.Module) -> bool:
    if isinstance(module, nn.MaxPool2d):
        return module.kernel_size == module.stride and module.dilation == 1
    if isinstance(module, nn.LeakyReLU):
        return abs(module.negative_slope) <= 1
    return type(module) is nn.ReLU or _rearranges(module)


def _rearranges(module: nn.Module) -> bool:
    """Whether the module only puts the numbers of a sample in another order; subclasses of Flatten do, whichever."""
    return isinstance(module, nn.Flatten | nn.Identity)


def _squared_norm(module: nn.Module, x: Tensor) -> Interval:
    """|W|_2^2 of the matrix of `module` on inputs of the shape of `x` (1, ...)."""
    if isinstance(module, nn.Linear):
        return exactly(float(torch.linalg.matrix_norm(module.weight.detach(), 2)) ** 2)

    def gram(rows: Tensor) -> Tensor:
        images = rows.reshape(-1, *x.shape[1:])
        moved, pull_back = vjp(lambda images: module(images) - offset, images)[:2]
        back: Tensor = pull_back(moved)[0]
        return back.detach().reshape(rows.shape)

    with torch.no_grad():
        offset = module(torch.zeros_like(x))
    top = lanczos(SymmetricOperator(x[0].numel(), x.dtype, x.device, gram), tol=_TOL)
    found, rounding = above(listed(top)[0], _TOL), 100 * torch.finfo(x.dtype).eps
    return Interval((1 - rounding) * found.low, (1 + rounding) * found.high)
