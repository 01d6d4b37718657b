"""Our convolutions, ReLU and max-pooling against torch's own, value and first, second and third derivatives."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from analysis import patches
from analysis.second_derivatives import LeanSecondDerivatives, convolution, graph_only

PLAIN = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def derivatives(
    y: Tensor,
    leaves: list[Tensor],
    generator: torch.Generator,
    at_first: AbstractContextManager[None] = nullcontext(),  # noqa: B008  it keeps nothing
) -> list[Tensor]:
    """y, its gradients along a random direction, the gradients of those along random directions, and those of these."""

    def random_like(t: Tensor) -> Tensor:
        return torch.randn(t.shape, dtype=t.dtype, generator=generator)

    with at_first:
        first = torch.autograd.grad((y * random_like(y)).sum() + (y**4).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(first, leaves, [random_like(g) for g in first], create_graph=True)
    third = torch.autograd.grad(second, leaves, [random_like(g) for g in second], retain_graph=True)
    return [y, *first, *second, *third]


@given(
    dimensions=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    with_bias=st.booleans(),
    input_is_data=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_convolutions(
    dimensions: int, stride: int, padding: int, dilation: int, groups: int, with_bias: bool, input_is_data: bool
) -> None:
    torch.manual_seed(0)
    sizes = [5, 6, 5][:dimensions]
    x = torch.randn(3, 4, *sizes, dtype=torch.float64)
    w = torch.randn(6, 4 // groups, *[2] * dimensions, dtype=torch.float64, requires_grad=True)
    b = torch.randn(6, dtype=torch.float64, requires_grad=True) if with_bias else None
    leaves = [t for t in (w, b) if t is not None] + ([] if input_is_data else [x.requires_grad_()])
    ours = convolution(dimensions, x, w, b, stride, padding, dilation, groups)
    theirs = PLAIN[dimensions](x, w, b, stride, padding, dilation, groups)
    results = [derivatives(y, leaves, torch.Generator().manual_seed(1)) for y in (ours, theirs)]
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e)


def test_relu_and_calls_in_every_spelling() -> None:
    x = torch.tensor([-1.0, -0.5, 0.0, 0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    for relu in (F.relu, torch.relu, Tensor.relu, nn.ReLU(), lambda x: F.relu(x, inplace=False)):
        with LeanSecondDerivatives():
            y: Any = relu(x)
        assert "_ReLU" in type(y.grad_fn).__name__
        assert y.tolist() == [0, 0, 0, 0, *x.tolist()[4:]]
        (slope,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, x, torch.ones_like(x))
        torch.testing.assert_close(curvature, 6 * y.detach())


@given(
    kernel=st.sampled_from([2, 3, (3, 2)]),
    stride=st.sampled_from([None, 1, 2, (2, 3)]),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    ceil_mode=st.booleans(),
    ties=st.booleans(),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
@settings(max_examples=30, deadline=None)
def test_max_pooling(
    kernel: Any, stride: Any, padding: int, dilation: int, ceil_mode: bool, ties: bool, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 9, 8, dtype=torch.float64)
    x = (x.round() if ties else x).contiguous(memory_format=layout).requires_grad_()
    with LeanSecondDerivatives():
        ours: Any = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)(x)
    assert "_MaxPool" in type(ours.grad_fn).__name__
    theirs = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    results = [derivatives(y, [x], torch.Generator().manual_seed(1)) for y in (ours, theirs)]
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("pool", [torch.max_pool2d, F.max_pool2d, nn.MaxPool2d(2)])
def test_max_pooling_in_every_spelling(pool: Any) -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with LeanSecondDerivatives():
        y = pool(x) if isinstance(pool, nn.Module) else pool(x, 2)
        alone = nn.MaxPool2d(2)(x[0])
        with_places = F.max_pool2d(x, 2, return_indices=True)
    assert "_MaxPool" in type(y.grad_fn).__name__
    torch.testing.assert_close(alone, y[0])
    torch.testing.assert_close(with_places[0], y)


def test_graphs_for_one_product_only_evaluate_no_weight_gradient() -> None:
    """Weight and bias gradients are zero, and yet their derivatives are those of the true ones."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    module = nn.Conv2d(3, 4, 3).double()
    leaves = [x, *module.parameters()]
    outside = derivatives(F.softplus(module(x)), leaves, torch.Generator().manual_seed(1))
    with LeanSecondDerivatives(), graph_only() as sparing:
        y = F.softplus(module(x))
    inside = derivatives(y, leaves, torch.Generator().manual_seed(1), sparing.values())
    assert [t.abs().max().item() == 0.0 for t in inside] == [False, False, True, True, *[False] * 6]
    for a, e in zip(inside, outside, strict=True):
        if a.any():
            torch.testing.assert_close(a, e)


def test_what_is_computed_otherwise_is_left_alone() -> None:
    x = torch.randn(2, 3, 5, 5)
    with LeanSecondDerivatives():
        same = nn.Conv2d(3, 2, 3, padding="same")(x)
        alone = nn.Conv2d(3, 2, 3)(x[0])
        F.relu(x.clone(), True)
    assert same.shape == (2, 2, 5, 5)
    assert alone.shape == (2, 3, 3)


@pytest.mark.parametrize("module", [nn.Conv2d(3, 2, 3, padding_mode="circular", padding=1), nn.Conv1d(3, 2, 3)])
def test_modules(module: nn.Module) -> None:
    x = torch.randn(2, 3, 5, 5) if isinstance(module, nn.Conv2d) else torch.randn(2, 3, 5)
    with LeanSecondDerivatives():
        inside = module(x)
    torch.testing.assert_close(inside, module(x))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_convolutions_by_patches_are_those_of_torch(data: st.DataObject) -> None:
    n, c, o = (data.draw(st.integers(1, 3), label=name) for name in ("images", "channels", "kernels"))
    size, kernel, stride, padding, dilation = (
        (data.draw(st.integers(low, high)), data.draw(st.integers(low, high)))
        for low, high in ((4, 9), (1, 3), (1, 3), (0, 2), (1, 2))
    )
    geometry = (stride, padding, dilation, 1)
    generator = torch.Generator().manual_seed(0)
    x, w, b = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((n, c, *size), (o, c, *kernel), (o,))
    )
    if any((s + 2 * p - d * (k - 1)) < 1 for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
        return  # nothing fits
    y = torch.convolution(x, w, b, stride, padding, dilation, False, [0, 0], 1)
    assert tuple(y.shape[2:]) == patches.pixels(x, w, geometry)
    torch.testing.assert_close(patches.apply(x, w, b, geometry), y, rtol=1e-12, atol=1e-12)
    g = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    by_x, by_w, _ = torch.ops.aten.convolution_backward(
        g, x, w, None, stride, padding, dilation, False, [0, 0], 1, [True, True, False]
    )
    torch.testing.assert_close(patches.by_input(g, x, w, geometry), by_x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(patches.by_weight(g, x, w, geometry), by_w, rtol=1e-12, atol=1e-12)
