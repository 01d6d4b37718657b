"""MAN, the layerwise activation norm that is added to every client's loss.

Source: "Minimizing Layerwise Activation Norm Improves Generalization in Federated Learning" (WACV 2024).

    R(theta) = sum_l  mean_batch( mean_units( a_l^2 ) )          client loss  <-  f_i(theta) + (zeta / 2) R(theta)

a_l is the activation of hidden layer l: what a nonlinearity returns, before any pooling, and never the logits. The
nonlinearities are found while the model runs (analysis/taps.py), so that MAN works on any `nn.Module`; or the user
names layers, whose outputs are then the a_l.

R leaves the input x, which enters the first layer, and the last layer's weights alone: at large zeta these weights grow
and the curvature moves into the first layer. An option beyond the paper weakens that, at the price of a higher loss
(docs/theory.md): it adds (zeta_logits / 2) mean_batch( mean_units( z^2 ) ) of the logits z, which holds the product of
all weights down.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from analysis.taps import Tap, tap_activations, tap_layers


class _MeanSquare(Function):
    """a -> (a, r), where r stands for mean(a^2): it has its gradient, but the value 0.

    A training step needs the gradient alone, 2 a / numel(a), which joins the gradient of `a` in one pass over memory.
    The value would cost one more pass; written as `a.pow(2).mean()`, a squared copy forward, a product and a sum back.
    r lies on the CPU, whatever the device of a: a factor of its gradient is then a number that no device is asked for.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(a)
        return a.view_as(a), _nothing(a)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        from_above, from_mean = gradients
        (a,) = ctx.saved_tensors
        scale = from_mean * (2.0 / a.numel())
        if torch.is_grad_enabled():
            total: Tensor = from_above.to(scale.dtype) + a.to(scale.dtype) * scale
            return total.to(a.dtype)
        if a.dtype != scale.dtype and not a.is_cuda:  # `alpha` would be rounded to bfloat16 as well; a factor is not
            rounded: Tensor = a.mul(scale.item())
            return rounded.add_(from_above)
        return from_above.add(a, alpha=scale.item())


class _MeanSquareOfCopy(Function):
    """a -> r as `_MeanSquare`'s, from a copy of `a`, which the model may then change in place.

    The copy is no saved tensor, of which `torch.utils.checkpoint` counts as many when it runs the model again.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.copy = a.detach().clone()
        return _nothing(a)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, from_mean: Tensor) -> Tensor:
        a: Tensor = ctx.copy
        gradient: Tensor = a.mul(from_mean.item() * (2.0 / a.numel()))
        return gradient


def _nothing(a: Tensor) -> Tensor:
    """The value 0 (), in single precision at least, on the CPU."""
    return torch.zeros((), dtype=torch.promote_types(a.dtype, torch.float32))


def square_sum(a: Tensor) -> Tensor:
    """sum(a^2) as a float64 scalar without a gradient; float32 sums of millions are off by 1e-4 and more."""
    norm: Tensor = torch.linalg.vector_norm(a.detach(), dtype=torch.float64)
    return norm.square()


@dataclass(frozen=True)
class Penalised:
    """One a_l."""

    name: str  # see `analysis.taps.Activation`
    units: int  # per sample
    axis: int | None  # along which the samples lie; None where they share an axis with something else


@dataclass(frozen=True)
class Taps:
    """What a model shows when it is run once (trial.py): where MAN acts and how; the defaults fit most models."""

    penalised: tuple[Penalised, ...] = ()
    ignored: frozenset[int] = frozenset()  # positions of nonlinearities that no sample has a part in, as sigmoid(gate)
    axes: tuple[int | None, ...] = ()  # of all that are tapped, in their order; empty: all 0
    copies: bool = False  # keep copies: an activation is changed in place later, or forgotten by a checkpoint


PLAIN = Taps()


@contextmanager
def tap_penalised(model: nn.Module, layers: Sequence[str], ignored: frozenset[int], tap: Tap) -> Iterator[None]:
    """Within the block, pass the outputs of `layers`, or with none every nonlinearity's result, through `tap`."""
    with tap_layers(model, layers, tap) if layers else tap_activations(tap, ignored):
        yield


def penalty_terms(
    model: nn.Module, inputs: Tensor, layers: Sequence[str] = (), taps: Taps = PLAIN
) -> tuple[Tensor, list[Tensor]]:
    """Run `model` on `inputs` and return (logits, [r_l for every hidden layer l, in the order computed]).

    `inputs` has shape (batch, ...); logits (batch, classes). Each r_l is a scalar of at least float32 that stands for
    mean(a_l^2) over batch and units in a loss to be differentiated: its gradient is exact, its value is 0 (measure
    activations with `tap_activations`). R of the module's docstring is the sum of the list. The a_l are the outputs of
    the modules `layers`, or with none the nonlinearities' results.
    """
    taken: list[tuple[Tensor, Tensor]] = []

    def tap(activation: Tensor) -> Tensor:
        pair: tuple[Tensor, Tensor] = (
            (activation, _MeanSquareOfCopy.apply(activation)) if taps.copies else _MeanSquare.apply(activation)  # type: ignore[no-untyped-call]
        )
        taken.append(pair)
        return pair[0]

    with tap_penalised(model, layers, taps.ignored, tap):
        logits: Tensor = model(inputs)
    return logits, [term for passed_on, term in taken if passed_on is not logits]
