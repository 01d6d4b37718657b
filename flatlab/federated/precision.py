"""The arithmetic of a client's forward and backward passes: IEEE, TF32, or bfloat16 by autocast.

Parameters, the algorithm's vectors, clipping, update and aggregation are float32 (or float64) whatever the precision;
so is every evaluation, and all curvature.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from analysis.ieee import ieee, multiply_float32

Precision = Literal["ieee", "tf32", "bf16"]

_aten = torch.ops.aten
_PRODUCTS = {
    _aten.convolution.default, _aten.convolution_backward.default, _aten.mm.default, _aten.addmm.default,
    _aten.bmm.default, _aten.baddbmm.default,
}  # fmt: skip


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within the block, multiply float32 numbers as `precision` says, on every device; the caller's autocast is off.

    bf16 leaves what `autocast` does not cast in IEEE float32, and is emulated on a `device` that must.
    """
    with ieee(), _emulation(precision, device):
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
    """One sentence where TF32 is asked of a device that has none, or bf16 of a processor that must emulate it."""
    if precision == "tf32" and not _has_tf32(device):
        where = "processor" if device.type == "cpu" else "GPU"
        return f"This {where} has no TF32 instructions: precision = tf32 is computed as ieee here, and no faster."
    if precision != "bf16" or device.type != "cpu":
        return ""
    supported: tuple[bool, ...] = (torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported())
    if any(supported):
        return ""
    return (
        "This processor has no bfloat16 instructions (AVX512-BF16, AMX): bf16 is emulated here by float32's kernels, "
        "and slower than ieee."
    )


def _has_tf32(device: torch.device) -> bool:
    if device.type == "cpu":  # oneDNN takes those of float16, which has as many bits
        return bool(torch.cpu._is_amx_fp16_supported())
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _emulation(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    emulated = precision == "bf16" and missing_kernels(precision, device)
    return _EmulatedProducts() if emulated else nullcontext()  # type: ignore[no-untyped-call]


class _EmulatedProducts(TorchDispatchMode):
    """Products and convolutions of bfloat16 tensors by float32's kernels, their results rounded to bfloat16.

    As the instructions do it: float32 holds the product of two bfloat16 numbers exactly, and adds them up. The kernels
    that torch has for a processor without them do the same eight times slower.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not any(_is_bfloat16(a) for a in args):
            return func(*args, **kwargs)
        return _cast(func(*_cast(args, torch.float32), **kwargs), torch.bfloat16)


def _is_bfloat16(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(dtype), values)
