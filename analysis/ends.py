"""Which eigenvalues are wanted, and beyond which border others would be wanted too."""

from typing import Literal

import torch
from torch import Tensor

Which = Literal["largest", "smallest", "both", "magnitude"]


def wanted(values: Tensor, k: int, which: Which) -> Tensor:
    """Positions of the k wanted of the ascending `values`, the most wanted first."""
    ascending = torch.arange(len(values), device=values.device)
    if which == "largest":
        return ascending.flip(0)[:k]
    if which == "smallest":
        return ascending[:k]
    if which == "magnitude":
        return values.abs().argsort(descending=True)[:k]
    k = min(k, len(values))
    return torch.cat([ascending.flip(0)[: k - k // 2], ascending[: k // 2]])


def borders(values: Tensor, which: Which) -> list[tuple[int, float]]:
    """(1, x) where what is larger than x would be wanted too, (-1, x) what is smaller; `values` as they are wanted."""
    last = values[-1].item()
    if which == "largest":
        return [(1, last)]
    if which == "smallest":
        return [(-1, last)]
    if which == "magnitude":
        return [(1, abs(last)), (-1, -abs(last))]
    return [(1, values[len(values) - len(values) // 2 - 1].item()), (-1, last)]


def of_lower_end(count: int, which: Which) -> Tensor:
    """Which of so many wanted values, in their order, are those of the lower end; bool (count,)."""
    at = torch.arange(count)
    return at >= (count - count // 2 if which == "both" else 0 if which == "smallest" else count)
