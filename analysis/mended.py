"""Operations of torch whose derivatives are wrong, missing, not those of L, or end the process (torch 2.13)."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from analysis.derivatives import within_transform
from analysis.errors import MeasurementError
from analysis.written_out import (
    bags_between,
    cdist,
    embedding_bags,
    hardsigmoid,
    multi_margin_loss,
    multilabel_margin_loss,
)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v|, the norm over all dimensions but `dim`; torch's own second derivative is asymmetric on a CPU."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def embedding(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Embeddings with dense gradients that are those of L: not divided by how often a row is looked up.

    Raises `MeasurementError` where rows are rescaled whenever they are looked up.
    """
    call = inspect.signature(function).bind(*args, **kwargs)
    if call.arguments.get("max_norm") is not None:
        raise MeasurementError(
            "An embedding with max_norm changes its weights whenever it runs, so L is no function of them; "
            "rescale them once and set max_norm to None."
        )
    call.arguments |= {"scale_grad_by_freq": False, "sparse": False}
    if function is F.embedding_bag and (call.arguments["input"].numel() or call.arguments["input"].dim() == 1):
        call.apply_defaults()
        return _bags(call.arguments)
    return function(*call.args, **call.kwargs)


def _bags(asked: Mapping[str, Any]) -> Tensor:
    indices, shares, inside = asked["input"], asked["per_sample_weights"], None
    if not len(indices):  # all bags are empty
        weight: Tensor = asked["weight"]
        return (0 * weight.sum()).expand(len(asked["offsets"]) - asked["include_last_offset"], weight.shape[1])
    if indices.dim() == 1:
        at, inside = bags_between(asked["offsets"], len(indices), asked["include_last_offset"])
        indices, shares = indices[at], None if shares is None else shares[at]
    return embedding_bags(indices, asked["weight"], asked["mode"], shares, asked["padding_idx"], inside)


def bare_embedding(weight: Tensor, indices: Tensor, padding_idx: int = -1, *_: Any, **__: Any) -> Tensor:
    """`torch.embedding` without its flags for sparse and for scaled gradients."""
    return torch.embedding(weight, indices, padding_idx)


def group_norm(function: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Group normalisation of contiguous images.

    On channels_last images on a CPU the process ends where only the weights' gradients are asked for.
    """
    return function(input.contiguous() if input.device.type == "cpu" else input, *args, **kwargs)


class _ContiguousGradient(Function):
    """x -> x, whose gradient lies as contiguous images do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()  # a view must not be changed in place, as an activation may do

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


def batch_statistics(function: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Batch or instance normalisation; of a single sample on a CPU torch misreads a gradient that lies channels last.

    As it does where tokens are made of an image, y.flatten(2).transpose(1, 2): all gradients behind it are wrong.
    """
    y = function(input, *args, **kwargs)
    misread = len(input) == 1 and not within_transform(y)  # torch.func lays out its own
    return _ContiguousGradient.apply(y) if misread else y  # type: ignore[no-untyped-call]


MENDED: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch._weight_norm: weight_norm,
    torch.embedding: bare_embedding,
    **{f: partial(embedding, f) for f in (F.embedding, F.embedding_bag)},
    **{f: partial(batch_statistics, f) for f in (F.batch_norm, torch.batch_norm, F.instance_norm, torch.instance_norm)},
    F.hardsigmoid: hardsigmoid,
    torch.cdist: cdist,
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
    **{f: partial(group_norm, f) for f in (F.group_norm, torch.group_norm, torch.native_group_norm)},
}
"""What is called in place of which function."""
