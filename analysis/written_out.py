"""Functions that torch 2.13 cannot differentiate twice, written out in others that it can.

Their values and gradients are torch's own, also where a gradient jumps: there it is the one that torch takes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn._reduction import legacy_get_string


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x + 3, 0), 6) / 6."""
    if inplace:
        return input.copy_(hardsigmoid(input.clone()))
    return (F.hardtanh(input, -3.0, 3.0) + 3) / 6


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    """Distances (..., n, m) between rows (..., n, d) and (..., m, d); where it is zero, so are its derivatives."""
    apart = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    same = (apart == 0).all(-1)
    distances: Tensor = torch.linalg.vector_norm(apart.masked_fill(same.unsqueeze(-1), 1.0), p, -1)
    return distances.masked_fill(same, 0.0)


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """sum_{j != y} w_y max(0, margin - x_y + x_j)^p / C of scores (..., C), reduced over samples."""
    right = target.unsqueeze(-1)
    terms = torch.relu(margin - input.gather(-1, right) + input) ** p
    if weight is not None:
        terms = terms * weight[right]
    return _reduced(terms.scatter(-1, right, 0.0).sum(-1) / input.shape[-1], size_average, reduce, reduction)


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """sum over i of no class and j of the classes of a sample, max(0, 1 - x_j + x_i) / C, reduced over samples.

    `target` (..., C) lists a sample's classes, up to its first negative entry.
    """
    listed = (target >= 0).cumprod(-1).bool()
    places = target.clamp(min=0)
    theirs = (F.one_hot(places, input.shape[-1]) * listed.unsqueeze(-1)).amax(-2).bool()
    terms = torch.relu(1 - input.gather(-1, places).unsqueeze(-1) + input.unsqueeze(-2))
    counted = listed.unsqueeze(-1) & ~theirs.unsqueeze(-2)
    losses = terms.masked_fill(~counted, 0.0).sum((-2, -1)) / input.shape[-1]
    return _reduced(losses, size_average, reduce, reduction)


def embedding_bags(
    indices: Tensor,
    weight: Tensor,
    mode: str,
    per_sample_weights: Tensor | None,
    padding_idx: int | None,
    inside: Tensor | None = None,
) -> Tensor:
    """Sum, mean or largest (N, D) of the rows of `weight` (V, D) that each bag of `indices` (N, L) names.

    Rows of `padding_idx`, and what is not `inside` (N, L), are not in it; of none, it is zero.
    """
    rows = weight[indices]
    kept = torch.ones_like(indices, dtype=torch.bool) if inside is None else inside
    if padding_idx is not None:
        kept = kept & (indices != padding_idx % len(weight))
    left_out = ~kept.unsqueeze(-1)
    if mode == "max":
        largest = rows.masked_fill(left_out, -torch.inf).max(1).values
        return largest.masked_fill(~kept.any(1, keepdim=True), 0.0)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    total = rows.masked_fill(left_out, 0.0).sum(1)
    return total / kept.sum(1, keepdim=True).clamp(min=1) if mode == "mean" else total


def bags_between(offsets: Tensor, length: int, include_last: bool) -> tuple[Tensor, Tensor]:
    """Bags of unequal lengths as rows: the places (N, L) in what has `length`, and which of them are in the bag."""
    starts = offsets[:-1] if include_last else offsets
    ends = offsets[1:] if include_last else torch.cat([offsets[1:], offsets.new_tensor([length])])
    lengths = (ends - starts).unsqueeze(1)
    steps = torch.arange(max(1, int(lengths.max())), device=offsets.device)
    return (starts.unsqueeze(1) + steps).clamp(max=length - 1), steps < lengths


def _reduced(losses: Tensor, size_average: bool | None, reduce: bool | None, reduction: str) -> Tensor:
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce, emit_warning=False)
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()
