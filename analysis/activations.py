"""How large the activations are that enter and leave each layer, which is what bounds the layer's eigenvalue.

For a layer with input a and output s: mean over samples of |a|^2, and of |phi(s)|^2, phi being the nonlinearity that
takes s (normalisation layers may lie between), before any pooling; |s|^2 itself where none does. Where what a
nonlinearity takes was computed from s, as by adding a shortcut, it counts if it follows before another layer runs.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from analysis.derivatives import within_transform
from analysis.distributed import summed_number
from analysis.layers import NORMALISATIONS, Layer, find_layers
from analysis.problem import Problem
from analysis.sample_axes import runs_of
from analysis.taps import tap_activations, without_fast_path


@dataclass(frozen=True)
class ActivationNorms:
    """Mean squared norms over the samples; nan where the layer does not run as a module or its input is no float."""

    input_norm2: float
    output_norm2: float


@dataclass(frozen=True)
class ForwardPass:
    """What one pass over the data shows without differentiating."""

    loss: float  # L
    layers: dict[str, ActivationNorms]


@dataclass(frozen=True)
class _Event:
    """Something that ran: a layer, or a nonlinearity (layer None); squared norms summed over the samples."""

    layer: Layer | None
    input_sum: float
    output_sum: float
    shape: torch.Size  # of the output
    source: Tensor | None  # the input, and of a layer
    result: Tensor | None  # the output; both are held, so that no other tensor takes their place in memory


def forward_pass(problem: Problem, names: Sequence[str] | None = None) -> ForwardPass:
    """The loss, and the norms for every layer or for the layers `names`; a layer that runs twice counts both runs.

    One that runs once for all samples of a batch counts for each of them.

    >>> import torch
    >>> from analysis.activations import forward_pass
    >>> from analysis.problem import make_problem
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> problem = make_problem(model, "mse", (torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1)))
    >>> round(forward_pass(problem).layers[""].input_norm2, 6)  # the mean of 4 and 1
    2.5
    """
    loss = 0.0
    layers = find_layers(problem)
    inputs: dict[str, float] = {}
    outputs: dict[str, float] = {}
    with problem.passing(), torch.no_grad(), without_fast_path():
        runs = runs_of(problem, layers)
        for chunk in problem.chunks():
            events: list[_Event] = []
            calls: Counter[str] = Counter()
            with _recorded(layers, events), _noted(events):
                loss += problem.chunk_loss(chunk, {}).item()
            for position, event in enumerate(events):
                if event.layer is not None:
                    name = event.layer.name
                    common = calls[name] < len(runs[name]) and runs[name][calls[name]].common
                    calls[name] += 1
                    times = len(chunk.targets) if common else 1
                    left = _leaving(events, position, common)
                    for sums, own in ((inputs, event.input_sum), (outputs, left)):
                        sums[name] = times * own + sums.get(name, 0.0)
    wanted = [layer.name for layer in find_layers(problem, names)]

    def mean(sums: dict[str, float], name: str) -> float:
        return summed_number(sums.get(name, math.nan), problem.device, problem.distributed) / problem.samples

    norms = {name: ActivationNorms(mean(inputs, name), mean(outputs, name)) for name in wanted}
    return ForwardPass(summed_number(loss, problem.device, problem.distributed), norms)


def _leaving(events: Sequence[_Event], position: int, common: bool) -> float:
    """What leaves the layer at `position`, as the module says.

    The next nonlinearity after a `common` layer may be one of samples again, of another shape.
    """
    layer, interrupted = events[position], False
    own, others = {_place(layer.result)} - {None}, {_place(event.result) for event in events} - {None}
    for event in events[position + 1 :]:
        place = _place(event.source)
        follows = place in own or (place not in others and not interrupted)  # or of something computed in between
        if event.layer is not None and isinstance(event.layer.module, NORMALISATIONS):
            own |= {_place(event.result)} if follows else set()
        elif event.layer is not None:
            interrupted = True
        elif follows:
            of_samples = common and event.shape != layer.shape
            return layer.output_sum if of_samples else event.output_sum
    return layer.output_sum


def _place(tensor: Tensor | None) -> int | None:
    """Where its numbers are, which a view has in common with what it is of."""
    return None if tensor is None or within_transform(tensor) else tensor.untyped_storage().data_ptr()


def _square_sum(tensor: Any) -> float:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or within_transform(tensor):
        return math.nan
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)) ** 2


@contextmanager
def _noted(events: list[_Event]) -> Iterator[None]:
    """Within the block, note every nonlinearity."""

    def note(activation: Tensor) -> Tensor:
        events.append(_Event(None, 0.0, _square_sum(activation), activation.shape, taps.argument, None))
        return activation

    with tap_activations(note) as taps:
        yield


@contextmanager
def _recorded(layers: Sequence[Layer], events: list[_Event]) -> Iterator[None]:
    """Within the block, note every run of the layers' modules when it ends."""

    def record(layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            source, result = (x if isinstance(x, Tensor) else None for x in (args[0] if args else None, output))
            shape = torch.Size() if result is None else result.shape
            events.append(_Event(layer, _square_sum(source), _square_sum(result), shape, source, result))

        return hook

    handles = [layer.module.register_forward_hook(record(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
