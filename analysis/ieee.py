"""IEEE arithmetic for everything that is measured, whatever the caller has switched on.

A residual certifies nothing if the product was rounded to ten bits. torch runs cuDNN's convolutions in TF32 unless told
otherwise, matrix products in TF32 or bfloat16 where `set_float32_matmul_precision` allows it, and all of them in half
precision under autocast.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from analysis.function_mode import FunctionMode

_GENERAL = ("generic", "all")
_BACKENDS = (("cuda", "all"), ("mkldnn", "all"))
_OPERATIONS = tuple((backend, op) for backend, _ in _BACKENDS for op in ("matmul", "conv", "rnn"))
_SWITCHES = (_GENERAL, *_BACKENDS, *_OPERATIONS)
"""torch's `fp32_precision` switches; one that is "none" follows the more general one."""

# torch.backends.mkldnn.fp32_precision writes another switch than it reads (torch 2.13), so the functions beneath it.
_read, _write = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter


@contextmanager
def ieee() -> Iterator[None]:
    """Within the block (or the function that this decorates) float32 is IEEE float32 on every device.

    Autocast is off. Afterwards every switch, old and new, is what it was; within, the old ones can be read and agree.
    """
    if all(_read(*switch) == "ieee" for switch in _SWITCHES) and not torch._C._is_any_autocast_enabled():
        yield
        return
    before = {switch: _read(*switch) for switch in _SWITCHES}
    own = _own_values()
    for switch in _SWITCHES:
        _write(*switch, "ieee")
    matmul, cudnn = torch.get_float32_matmul_precision(), _cudnn_allows_tf32()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    multiply_float32("ieee")  # the old switches wrote some of them
    try:
        with _without_autocast():
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn
        for switch in _SWITCHES:
            _write(*switch, own[switch])
        for switch in _SWITCHES:  # cuDNN's begin as a TF32 that follows, which nothing written brings back
            if _read(*switch) != before[switch]:
                _write(*switch, before[switch])


def multiply_float32(value: str) -> None:
    """Set every operation's own switch to `value`, "ieee" or "tf32"."""
    for switch in _OPERATIONS:
        _write(*switch, value)


def _own_values() -> dict[tuple[str, str], str]:
    """What every switch itself is set to. Those above it are overwritten on the way.

    A switch that reads otherwise when the one above it changes is "none".
    """
    own = {_GENERAL: _read(*_GENERAL)}
    for switch in (*_BACKENDS, *_OPERATIONS):
        above = _GENERAL if switch in _BACKENDS else (switch[0], "all")
        readings = set()
        for value in ("ieee", "tf32"):
            _write(*above, value)
            readings.add(_read(*switch))
        own[switch] = readings.pop() if len(readings) == 1 else "none"
    return own


def _cudnn_allows_tf32() -> bool:
    """The old switch, with the new ones at "ieee": torch then refuses to read it where it is on."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return True


@contextmanager
def _without_autocast() -> Iterator[None]:
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


class NoAutocast(FunctionMode):
    """Within the block, also autocast that the model itself switches on is off."""

    def _instead(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if not torch._C._is_any_autocast_enabled():
            return func(*args, **kwargs)
        with _without_autocast():
            return func(*args, **kwargs)
