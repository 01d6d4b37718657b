"""Gradients, with a sentence where torch has none."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from analysis.errors import MeasurementError
from analysis.ieee import ieee

_SIGNS = ("not implemented", "once_differentiable", "not differentiable")
"""Parts of torch's messages about derivatives that it does not have."""

_RECOMPUTED = "torch.utils.checkpoint"
"""Part of its messages about what is recomputed where gradients are taken."""


@ieee()
def gradients(
    outputs: Sequence[Tensor | GradientEdge | None],
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
) -> Sequence[Tensor]:
    """The transposed Jacobian of outputs in inputs times vectors (None: of one scalar); the graph is kept.

    Of an output whose value nobody needs the edge is enough, beside a vector; None is a constant. Zeros where an output
    depends on nothing that requires a gradient. Raises `MeasurementError` where torch cannot differentiate.
    """
    weights = vectors if vectors is not None else [torch.ones_like(o) for o in outputs if isinstance(o, Tensor)]
    pairs = [(o, v) for o, v in zip(outputs, weights, strict=True) if not _constant(o)]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    differentiable, along = zip(*pairs, strict=True)
    with _explained():
        return torch.autograd.grad(
            differentiable, inputs, along, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )


def _constant(output: Tensor | GradientEdge | None) -> bool:
    return output is None or (isinstance(output, Tensor) and not output.requires_grad)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn torch's errors about missing derivatives into `MeasurementError`."""
    try:
        yield
    except RuntimeError as error:  # NotImplementedError among them
        said = str(error).partition("\n")[0]
        if _RECOMPUTED in said:
            raise MeasurementError(
                f"A part of the model or loss is recomputed where its gradients are taken, which fails here ({said}); "
                "run it directly, or by torch.utils.checkpoint.checkpoint, which is left out while it is measured."
            ) from error
        if not any(sign in said for sign in _SIGNS):
            raise
        raise MeasurementError(
            f"torch has no second derivative of a part of the model or loss ({said}); "
            "replace it by operations that have one."
        ) from error


def within_transform(tensor: Tensor) -> bool:
    """Whether torch.func.grad or vmap made it for a time: it has one sample's shape, and no meaning afterwards."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def graph_results(outputs: Sequence[Tensor]) -> list[Any]:
    """Shape and type of all that was computed on the way to `outputs`, as far as it requires a gradient.

    Read off the graph, because torch.func runs under no hooks for saved tensors.
    """
    nodes = set().union(*map(ancestors, outputs))
    return [result for node in nodes for result in node._input_metadata if hasattr(result, "dtype")]


def ancestors(tensor: Tensor, without: Node | None = None) -> set[Node]:
    """Every node of the graph from which `tensor` was computed, but for `without` and what lies behind it alone."""
    waiting = [get_gradient_edge(tensor).node] if tensor.requires_grad else []
    met: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node in met or node is without:
            continue
        met.add(node)
        waiting += [before for before, _ in node.next_functions if before is not None]
    return met
