"""The arithmetic of a client's forward and backward passes: IEEE, TF32, or bfloat16 by autocast.

Parameters, the algorithm's vectors, clipping, update and aggregation are float32 (or float64) whatever the precision;
so is every evaluation, and all curvature.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Literal

import torch

Precision = Literal["ieee", "tf32", "bf16"]

_SWITCHES: tuple[Any, ...] = tuple(
    attrgetter(f"backends{name}")(torch)
    for name in (
        "", ".cuda.matmul", ".cudnn", ".cudnn.conv", ".cudnn.rnn",
        ".mkldnn", ".mkldnn.matmul", ".mkldnn.conv", ".mkldnn.rnn",
    )
)  # fmt: skip
"""What says how float32 is multiplied; the general before the particular, which would override it."""


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Within the block, multiply float32 numbers as `precision` says, on every device; autocast is `autocast`'s matter.

    PyTorch runs cuDNN's convolutions in TF32 unless told otherwise. bf16 leaves what is not cast in IEEE float32.
    """
    before = [switch.fp32_precision for switch in _SWITCHES]
    for switch in _SWITCHES:
        switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for switch, value in zip(_SWITCHES, before, strict=True):
            switch.fp32_precision = value


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass: bfloat16 where the precision is bf16, else none, whatever the caller's is."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def missing_kernels(precision: Precision, device: torch.device) -> str:
    """One sentence where bf16 is asked of a processor that must emulate it; else empty."""
    if precision != "bf16" or device.type != "cpu":
        return ""
    supported: tuple[bool, ...] = (torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported())
    if any(supported):
        return ""
    return (
        "This processor has no bfloat16 instructions (AVX512-BF16, AMX): bf16 is emulated here, and slower than ieee."
    )
