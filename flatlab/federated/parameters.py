"""A model's parameters as one flat vector, and back: the algorithms are written on vectors, as in the papers."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from analysis.layers import NORMALISATIONS, is_bias
from flatlab.errors import UsageError


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in the flat vector: `names[j]` has `shapes[j]` and starts where j - 1 ends."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    matrices: tuple[bool, ...]  # whether it is a weight matrix or kernel: no bias, nor of a normalisation

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
        of = zip(self.sizes, self.matrices, strict=True)
        return torch.cat([torch.full((size,), is_matrix, dtype=torch.bool) for size, is_matrix in of])


def layout_of(model: nn.Module) -> Layout:
    """Return the layout of `model`'s parameters that train, tied ones once; frozen ones are no part of the vector.

    Raises `UsageError` for a model that has none, or whose parameters and buffers are complex or without a shape yet.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise UsageError(
                f"The model's {name} has no shape yet (a lazy layer); run the model once on a batch in its function."
            )
        if tensor.is_complex():
            raise UsageError(
                f"The model's {name} is complex, and all is computed in real numbers; keep real and imaginary parts "
                "apart (torch.view_as_real)."
            )
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not named:
        raise UsageError("The model has no parameter that requires a gradient, so there is nothing to train.")
    scales = {p for m in model.modules() if isinstance(m, NORMALISATIONS) for p in m.parameters(recurse=False)}
    matrices = (p.dim() > 1 and not is_bias(_within(name)) and p not in scales for name, p in named.items())
    return Layout(tuple(named), tuple(p.shape for p in named.values()), tuple(matrices))


def _within(name: str) -> str:
    """The parameter's name in its module, also where a parametrization stands between."""
    parts = name.split(".")
    return parts[parts.index("parametrizations") + 1] if "parametrizations" in parts else parts[-1]


def flatten(parameters: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Return the flat vector (P,) of `parameters`, a fresh copy; the inverse of `Layout.views`."""
    return torch.cat([parameters[name].detach().reshape(-1) for name in layout.names])


def load_vector(model: nn.Module, vector: Tensor) -> None:
    """Copy the flat `vector` (P,) into `model`'s parameters."""
    with torch.no_grad():
        named = dict(model.named_parameters())
        for name, value in layout_of(model).views(vector).items():
            named[name].copy_(value)


def state_of(model: nn.Module, vector: Tensor, layout: Layout) -> dict[str, Any]:
    """The state_dict of `model` with the parameters `vector` (P,): every name of a tied one, frozen ones and buffers.

    Copies; `model` is left as it is.
    """
    views = {name: view.clone() for name, view in layout.views(vector).items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = model.state_dict(keep_vars=True)
    return {
        key: views[names[id(value)]]
        if names.get(id(value)) in views
        else value.detach().clone()
        if isinstance(value, Tensor)
        else value
        for key, value in state.items()
    }
