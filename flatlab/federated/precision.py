"""The arithmetic of a client's forward and backward passes: IEEE, TF32, or bfloat16 by autocast.

Parameters, the algorithm's vectors, clipping, update and aggregation are float32 (or float64) whatever the precision;
so is every evaluation, and all curvature.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from analysis.ieee import ieee, multiply_float32

Precision = Literal["ieee", "tf32", "bf16"]


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Within the block, multiply float32 numbers as `precision` says, on every device; the caller's autocast is off.

    bf16 leaves what `autocast` does not cast in IEEE float32.
    """
    with ieee():
        if precision != "tf32":
            yield
            return
        multiply_float32("tf32")
        try:
            yield
        finally:
            multiply_float32("ieee")


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass: bfloat16 where the precision is bf16, else none, whatever the caller's is."""
    # The cache knows a weight by its name, and a client's next step has another value under the same.
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


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
