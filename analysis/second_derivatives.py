"""Convolutions, ReLU and max-pooling whose second derivatives compute what is needed and no more.

A convolution y = C(x, w) belongs to the trilinear form <g, C(x, w)>: its gradients are the other two partial maps, X(g,
w) = d<g, y>/dx and W(g, x) = d<g, y>/dw, and theirs are the three maps again. torch's own second derivative computes
all of them whenever a weight changes, also the one that belongs to an input without gradient, and goes slow ways to two
of them; that of ReLU carries a tensor of zeros along; its max-pooling is slow on images that are stored channel by
channel. Done without that waste, a Hessian-vector product of the CIFAR network takes 1.48 gradients where PyHessian's
takes 1.81 (benchmarks/README.md).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from analysis import patches
from analysis.derivatives import within_transform
from analysis.function_mode import FunctionMode
from analysis.mended import MENDED
from analysis.patches import Geometry, Sizes

Window = tuple[int | Sizes, int | Sizes, int | Sizes, int | Sizes, bool]
"""Kernel size, stride (empty: the kernel's), padding, dilation, and whether the number of windows is rounded up."""

_DIMENSIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_RELUS = (torch.relu, torch.nn.functional.relu, Tensor.relu)
_MAX_POOLS = (torch.max_pool2d, torch.nn.functional.max_pool2d)


@dataclass
class Sparing:
    """Whether the convolutions run under it leave out the values of their weights' gradients."""

    on: bool = False

    @contextmanager
    def values(self) -> Iterator[None]:
        """Gradients taken within the block leave them out."""
        self.on = True
        try:
            yield
        finally:
            self.on = False


_spared: ContextVar[Sparing] = ContextVar("_spared", default=Sparing())  # noqa: B039  never switched on


@contextmanager
def graph_only() -> Iterator[Sparing]:
    """Convolutions run within the block can give gradients of weight and bias that have their graph but are zero.

    They do so in gradients that are taken within `values()` of what this yields, for a weight and a bias that are
    leaves: what flows back enters these linearly, so no second derivative reads the values. Those of a weight that is
    itself computed from parameters are read by the derivative of that computation.
    """
    sparing = Sparing()
    token = _spared.set(sparing)
    try:
        yield sparing
    finally:
        _spared.reset(token)


class LeanSecondDerivatives(FunctionMode):
    """Within the block, convolutions, ReLU and 2-D max-pooling are computed by the functions of this module.

    What has no right derivative in torch is computed by those of `mended`.
    """

    def _instead(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func in MENDED:
            return MENDED[func](*args, **kwargs)
        if any(isinstance(value, Tensor) and within_transform(value) for value in args):
            return func(*args, **kwargs)  # for what follows, torch.func has no rules
        if func in _DIMENSIONS:
            return convolution(_DIMENSIONS[func], *args, **kwargs)
        if func in _RELUS and len(args) == 1 and not kwargs.get("inplace", False):
            return _ReLU.apply(args[0])  # type: ignore[no-untyped-call]
        if func in _MAX_POOLS:
            return max_pool2d(*args, **kwargs)
        return func(*args, **kwargs)


def convolution(
    dimensions: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sizes = 1,
    padding: int | Sizes | str = 0,
    dilation: int | Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv<dimensions>d` of a batch, with derivatives of every order."""
    plain = (torch.conv1d, torch.conv2d, torch.conv3d)[dimensions - 1]
    of_complex = input.is_complex() or weight.is_complex()  # whose partial maps conjugate: torch has its own way
    if of_complex or isinstance(padding, str) or input.dim() != dimensions + 2:
        return plain(input, weight, bias, stride, padding, dilation, groups)
    geometry = (_each(stride, dimensions), _each(padding, dimensions), _each(dilation, dimensions), groups)
    leaves = weight.is_leaf and (bias is None or bias.is_leaf)
    spared = _spared.get() if leaves else Sparing()
    y: Tensor = _Convolution.apply(input, weight, bias, geometry, spared)  # type: ignore[no-untyped-call]
    return y


def max_pool2d(
    input: Tensor,
    kernel_size: int | Sizes,
    stride: int | Sizes | None = None,
    padding: int | Sizes = 0,
    dilation: int | Sizes = 1,
    ceil_mode: bool = False,
    return_indices: Literal[False] = False,
) -> Tensor:
    """`torch.max_pool2d` of a batch, with derivatives of every order."""
    window = (kernel_size, stride or (), padding, dilation, ceil_mode)
    if input.dim() != 4:
        return torch.max_pool2d(input, *window)
    y: Tensor = _MaxPool.apply(input, window)  # type: ignore[no-untyped-call]
    return y


def _each(size: int | Sizes, dimensions: int) -> Sizes:
    sizes = tuple(size) if isinstance(size, Iterable) else (size,)
    return sizes * dimensions if len(sizes) == 1 else sizes


def weight_gradients(x: Tensor, w: Tensor, g: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """W(g, x) and the bias's gradient, without a forward pass; `w` gives the shape only."""
    _, by_weight, by_bias = _partial_maps(g, x, w, (False, True, True), geometry)
    return by_weight, by_bias


class _Convolution(Function):
    """x, w, b -> y = C(x, w) + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry, spared: Sparing) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry, ctx.spared = geometry, spared
        return _map(x, w, b, geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, w = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            with_graph = _Gradients.apply(gradients[0], x, w, needed, ctx.geometry, not ctx.spared.on)  # type: ignore[no-untyped-call]
            return *with_graph, None, None
        return *_partial_maps(gradients[0], x, w, needed, ctx.geometry), None, None


class _Gradients(Function):
    """g, x, w -> X(g, w), W(g, x) and the sum of g over all but its channels, those `needed`.

    The last two are zero unless `valued`; torch would compute W even where only the sum is asked for.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, needed: Any, geometry: Geometry, valued: bool) -> Any:
        ctx.save_for_backward(g, x, w)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        if valued:
            return _partial_maps(g, x, w, needed, geometry)
        by_x = _partial_maps(g, x, w, (True, False, False), geometry)[0] if needed[0] else None
        by_w = torch.zeros_like(w) if needed[1] else None
        return by_x, by_w, g.new_zeros(w.shape[0]) if needed[2] else None

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        """With h, k, c the gradients of the three results: C(h, w) + C(x, k) + c, X(g, k), W(g, h)."""
        g, x, w = ctx.saved_tensors
        h, k, c = gradients
        by_g = by_x = by_w = None
        if ctx.needs_input_grad[0]:
            by_g = _map(h, w, None, ctx.geometry) if h is not None else None
            if k is not None:
                along_weights = _map(x, k, c, ctx.geometry)
                by_g = along_weights if by_g is None else by_g.add_(along_weights)
            elif c is not None:
                spread = c.view(-1, *[1] * (g.dim() - 2)).expand_as(g)
                by_g = spread if by_g is None else by_g.add_(spread)
        if ctx.needs_input_grad[1] and k is not None:
            by_x = _partial_maps(g, x, k, (True, False, False), ctx.geometry)[0]
        if ctx.needs_input_grad[2] and h is not None:
            by_w = _partial_maps(g, h, w, (False, True, False), ctx.geometry)[1]
        return by_g, by_x, by_w, None, None, None


def _map(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
    """C(x, w) + b."""
    stride, padding, dilation, groups = geometry
    if patches.pay(x, w, patches.pixels(x, w, geometry), groups):
        return patches.apply(x, w, b, geometry)
    return torch.convolution(x, w, b, stride, padding, dilation, False, [0] * len(stride), groups)


def _partial_maps(g: Tensor, x: Tensor, w: Tensor, needed: Any, geometry: Geometry) -> Any:
    """X(g, w), W(g, x), sum g; None for what is not `needed`."""
    stride, padding, dilation, groups = geometry
    if patches.pay(x, w, g.shape[2:], groups):
        by_x = patches.by_input(g, x, w, geometry) if needed[0] else None
        by_w = patches.by_weight(g, x, w, geometry) if needed[1] else None
        return by_x, by_w, g.sum((0, 2, 3)) if needed[2] else None
    return torch.ops.aten.convolution_backward(
        g, x, w, [w.shape[0]], stride, padding, dilation, False, [0] * len(stride), groups, list(needed)
    )


class _ReLU(Function):
    """x -> max(x, 0)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        masked: Tensor = _Masked.apply(gradients[0], y.detach())  # type: ignore[no-untyped-call]
        return masked


class _Masked(Function):
    """g, y -> g where y > 0, else 0; linear in g, and flat in y almost everywhere."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        masked: Tensor = torch.ops.aten.threshold_backward(g, y, 0)
        return masked

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], y, 0), None


class _MaxPool(Function):
    """x -> the largest entry of every window."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        # On a CPU, torch's loop over channels_last images is vectorised, that over contiguous ones is not.
        laid_out = x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x
        largest, places = torch.ops.aten.max_pool2d_with_indices(laid_out, *window)
        ctx.save_for_backward(places.contiguous())
        ctx.shape, ctx.window = x.shape, window
        y: Tensor = largest.contiguous()
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (places,) = ctx.saved_tensors
        return _PutBack.apply(gradients[0], places, ctx.shape, ctx.window), None  # type: ignore[no-untyped-call]


class _PutBack(Function):
    """g -> zeros of the images' shape, to which g is added at the places the entries came from; linear in g."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, places: Tensor, shape: torch.Size, window: Window) -> Tensor:
        ctx.save_for_backward(places)
        images = g.new_empty(shape)  # only its shape is read
        spread: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(g, images, *window, places)
        return spread

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (places,) = ctx.saved_tensors
        picked = gradients[0].flatten(2).gather(2, places.flatten(2)).view_as(places)
        return picked, None, None, None
