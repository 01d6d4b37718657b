"""What a layer's run has to do with the samples: whether it has a row for each of them, or is the same for all.

A layer may run on what no sample has a part in: a table of positions, constants that a network makes weights from.
Shapes show it, those for one sample taken twice and taken three times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from analysis.batches import batch_length, moved, picked
from analysis.layers import Layer
from analysis.problem import Problem
from analysis.taps import without_fast_path

Shapes = tuple[torch.Size, torch.Size]
"""Of what enters and what leaves a layer."""


@dataclass(frozen=True)
class Run:
    """One call of a layer."""

    common: bool  # once for all samples of a batch
    by_sample: bool  # the first axis of what enters and leaves counts the samples


def runs_of(problem: Problem, layers: Sequence[Layer]) -> dict[str, list[Run]]:
    """The calls of every layer, in their order; none where their number depends on that of the samples."""
    batch = next(batch for batch in problem.data if batch_length(batch))
    twice, thrice = (_shapes(problem, layers, picked(batch, torch.zeros(n, dtype=torch.int64))) for n in (2, 3))
    return {
        name: [_run(two, three) for two, three in zip(calls, thrice[name], strict=True)]
        if len(calls) == len(thrice[name])
        else []
        for name, calls in twice.items()
    }


def _run(two: Shapes, three: Shapes) -> Run:
    by_sample = all(a[:1] == (2,) and b[:1] == (3,) and a[1:] == b[1:] for a, b in zip(two, three, strict=True))
    return Run(common=two == three and all(shape.numel() for shape in two), by_sample=by_sample)  # none: no samples


def _shapes(problem: Problem, layers: Sequence[Layer], batch: Any) -> dict[str, list[Shapes]]:
    found: dict[str, list[Shapes]] = {layer.name: [] for layer in layers}

    def hook(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found[name].append((_shape(args[0] if args else None), _shape(output)))

        return note

    handles = [layer.module.register_forward_hook(hook(layer.name)) for layer in layers]
    try:
        with torch.no_grad(), without_fast_path():
            problem.outputs(moved(batch, problem.device, problem.dtype), {})
    finally:
        for handle in handles:
            handle.remove()
    return found


def _shape(value: Any) -> torch.Size:
    return value.shape if isinstance(value, Tensor) else torch.Size()
