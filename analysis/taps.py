"""What an activation is: the result of a nonlinearity, found while the model runs.

It does not matter whether the model calls `nn.ReLU`, `F.relu`, `x.relu()` or `x.clamp(min=0)`. Of a recurrent network
it is the hidden states of all steps, of the last layer where there are several. Left out are softmax, which makes
attention weights, and clamps to a positive range, which guard a division or a logarithm. What torch's functions do not
show (a product with a mask, a custom `autograd.Function`) is not found: name the layer instead (`tap_layers`).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from analysis.function_mode import FunctionMode

Tap = Callable[[Tensor], Tensor]
"""Takes an activation, shape (batch, ...) unless the model puts its samples elsewhere; returns it or a substitute."""


def _always(*args: Any, **kwargs: Any) -> bool:
    return True


def _bounded_at_zero(x: Tensor, min: Any = None, max: Any = None) -> bool:
    """Whether a clamp bends the numbers it lets through, as ReLU, ReLU6 and hardtanh do: a bound is 0 or negative."""
    return any(bound is not None and (isinstance(bound, Tensor) or bound <= 0) for bound in (min, max))


def _upper_bounded_at_zero(x: Tensor, max: Any) -> bool:
    return _bounded_at_zero(x, max=max)


def _of_two_tensors(x: Tensor, other: Any = None, **kwargs: Any) -> bool:
    """Whether it is max(x, y), and not the maximum along a dimension."""
    return isinstance(other, Tensor)


_NONLINEARITIES: Mapping[str, Callable[..., bool]] = {
    name + suffix: condition
    for names, condition in (
        (
            "relu relu6 leaky_relu prelu rrelu elu celu selu gelu silu mish glu hardswish hardtanh hardsigmoid "
            "tanh sigmoid special_expit softplus softsign log_sigmoid logsigmoid hardshrink softshrink tanhshrink "
            "threshold _threshold maximum minimum fmax fmin "
            "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
            _always,
        ),
        ("clamp clip clamp_min", _bounded_at_zero),
        ("clamp_max", _upper_bounded_at_zero),
        ("max min", _of_two_tensors),
    )
    for name in names.split()
    for suffix in ("", "_")
}
"""Names of torch's functions whose results are activations, each with the condition on its arguments."""


class _Taps(FunctionMode):
    """Hands the result of every nonlinearity to `tap` and lets the model go on with what `tap` returns."""

    def __init__(self, tap: Tap, ignored: frozenset[int]) -> None:
        super().__init__()
        self.tap = tap
        self.ignored = ignored
        self.count = 0
        self.function = ""  # the newest nonlinearity,
        self.argument: Tensor | None = None  # and what it is of

    def _instead(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self.argument = next((arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)), None)
        result = func(*args, **kwargs)  # what it calls itself is not seen, so that relu6 is no hardtanh too
        name = getattr(func, "__name__", "")
        if name not in _NONLINEARITIES or not _NONLINEARITIES[name](*args, **kwargs):
            return result
        self.function = name.strip("_")
        return _tapped(result, self._counted)

    def _counted(self, activation: Tensor) -> Tensor:
        self.count += 1
        return activation if self.count - 1 in self.ignored else self.tap(activation)


def _tapped(result: Any, tap: Tap) -> Any:
    """Tap a result, or its first member where it is several tensors (a recurrent layer's: all hidden states)."""
    if type(result) is tuple and result:
        return (_tapped(result[0], tap), *result[1:])
    return tap(result) if isinstance(result, Tensor) and result.is_floating_point() else result


@contextmanager
def tap_activations(tap: Tap, ignored: frozenset[int] = frozenset()) -> Iterator[_Taps]:
    """Within the block, pass every activation, in the order computed, through `tap`, which returns it or a substitute.

    An activation has shape (batch, ...) and the model's dtype. The last one may be the model's output (logits) in
    models that end with a nonlinearity; the caller tells by identity. Those whose position in the order is in `ignored`
    are passed over. Yields what knows the `function` that was tapped last, and its `argument`.
    """
    taps = _Taps(tap, ignored)
    with taps:
        yield taps


@contextmanager
def tap_layers(model: nn.Module, names: Sequence[str], tap: Tap) -> Iterator[None]:
    """Within the block, pass the output of every run of the modules `names` through `tap`; see `tap_activations`."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return _tapped(output, tap)

    handles = [model.get_submodule(name).register_forward_hook(hook) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Activation:
    """One that a forward pass computed."""

    name: str  # of the module that is the nonlinearity or was named, or "function in module"
    shape: torch.Size
    requires_grad: bool  # whether a parameter that trains has a part in it
    is_output: bool  # whether it is what the model returns


def named_activations(model: nn.Module, inputs: Any, layers: Sequence[str] = ()) -> tuple[Any, list[Activation]]:
    """Run `model` on `inputs` and return its output and every activation, or the outputs of `layers`, in their order.

    Runs with gradients or without as the caller has them. What is computed twice has " #2" behind its name.
    """
    found: list[tuple[str, Tensor, bool]] = []
    times: Counter[str] = Counter()
    paths = [""]

    def note(name: str, activation: Tensor) -> Tensor:
        times[name] += 1
        name = name if times[name] == 1 else f"{name} #{times[name]}"
        found.append((name, activation, activation.requires_grad))
        return activation

    def label(activation: Tensor) -> Tensor:
        path = paths[-1]
        module = model.get_submodule(path)
        if path and type(module).__module__.startswith("torch.nn") and not list(module.children()):
            return note(path, activation)
        return note(f"{taps.function} in {path}" if path else taps.function, activation)

    def enter(path: str, *_: Any) -> None:
        paths.append(path)

    def leave(*_: Any) -> None:
        paths.pop()

    with ExitStack() as stack:
        for name, module in model.named_modules():
            entering = module.register_forward_pre_hook(partial(enter, name))
            leaving = module.register_forward_hook(leave, always_call=True)
            stack.callback(entering.remove)
            stack.callback(leaving.remove)
        if layers:
            for name in layers:
                stack.enter_context(tap_layers(model, [name], partial(note, name)))
        else:
            taps = stack.enter_context(tap_activations(label))
        outputs = model(inputs)
    return outputs, [Activation(name, a.shape, trains, a is outputs) for name, a, trains in found]


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Make transformer layers run their parts as modules, so that hooks see them."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
