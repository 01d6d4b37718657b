"""A model's parameters as one flat vector, and back: the algorithms are written on vectors, as in the papers."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from flatlab.errors import UsageError


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in the flat vector: `names[j]` has `shapes[j]` and starts where j - 1 ends."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each parameter."""
        return [prod(shape) for shape in self.shapes]

    @property
    def size(self) -> int:
        """P, the length of the flat vector."""
        return sum(self.sizes)

    def views(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return the parameters as views of `vectors`, shape (..., P) -> name: (..., *shape)."""
        parts = vectors.split(self.sizes, dim=-1)
        batch = vectors.shape[:-1]
        return {n: part.view(*batch, *shape) for n, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def is_weight(self) -> Tensor:
        """Return a bool vector (P,): true on weight matrices and kernels, false on biases and norm parameters."""
        return torch.cat(
            [torch.full((n,), len(s) > 1, dtype=torch.bool) for n, s in zip(self.sizes, self.shapes, strict=True)]
        )


def layout_of(model: nn.Module) -> Layout:
    """Return the layout of `model`'s parameters, tied ones once.

    Raises `UsageError` for a model with floating-point buffers (batch norm's running statistics): the algorithms are
    defined on parameters alone, and averaging statistics of differing clients is not part of any of them.
    """
    moving = [name for name, buffer in model.named_buffers() if buffer.is_floating_point()]
    if moving:
        raise UsageError(
            f"The model keeps running statistics ({moving[0]}), which no federated algorithm here averages; "
            "use GroupNorm instead of BatchNorm."
        )
    named = dict(model.named_parameters())
    return Layout(tuple(named), tuple(p.shape for p in named.values()))


def flatten(parameters: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Return the flat vector (P,) of `parameters`, a fresh copy; the inverse of `Layout.views`."""
    return torch.cat([parameters[name].detach().reshape(-1) for name in layout.names])


def load_vector(model: nn.Module, vector: Tensor) -> None:
    """Copy the flat `vector` (P,) into `model`'s parameters."""
    with torch.no_grad():
        named = dict(model.named_parameters())
        for name, value in layout_of(model).views(vector).items():
            named[name].copy_(value)
