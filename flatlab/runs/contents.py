"""What files of tensors must hold, checked as they are read, so that nothing after has to ask again.

A file may have been made by anybody: each part is looked at by its type first, and a tensor's entries only once it is
known that there are as many as the file holds bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatlab.errors import UsageError, shown

NAMES = ("server", "selected", "all", "swa")
"""Models of a round."""

DEEPEST = 20
"""Levels of lists and tables in plain data."""


def require_version(plain: Mapping[str, Any], path: Path, newest: int) -> None:
    """Raise `UsageError` unless the file says a version that this flatlab can read."""
    found = plain.get("version")
    if type(found) is not int or found < 1:
        raise damaged(path, "version", f"is {shown(found)} and no whole number")
    if found > newest:
        raise UsageError(f"{path} was written by a newer flatlab (format {shown(found)}); update flatlab to read it.")


def require_keys(plain: object, keys: Sequence[str], path: Path, field: str = "") -> dict[str, Any]:
    """Return `plain`, a dictionary that has all `keys`."""
    if not isinstance(plain, dict):
        raise damaged(path, field, f"is {shown(plain)} and no table")
    for key in keys:
        if key not in plain:
            raise UsageError(f"{path} lacks its '{_below(field, key)}': it is damaged; use another one.")
    return plain


def require_round(value: object, last: int, path: Path, field: str = "round") -> int:
    """Return a number of completed rounds, 0..last."""
    if type(value) is not int or not 0 <= value <= last:
        raise damaged(path, field, f"is {shown(value)} and no number from 0 to the run's {last} rounds")
    return value


def require_text(value: object, path: Path, field: str) -> str:
    """Return a text."""
    if not isinstance(value, str):
        raise damaged(path, field, f"is {shown(value)} and no text")
    return value


def require_texts(value: object, path: Path, field: str) -> list[str]:
    """Return a list of texts."""
    if not isinstance(value, list):
        raise damaged(path, field, f"is {shown(value)} and no list")
    return [require_text(text, path, field) for text in value]


def require_numbers(value: object, path: Path, field: str) -> dict[str, list[float]]:
    """Return name: list of numbers."""
    for name, numbers in require_keys(value, (), path, field).items():
        if not isinstance(name, str) or not isinstance(numbers, list) or any(type(x) is not float for x in numbers):
            raise damaged(path, field, f"has {shown(name)}: {shown(numbers)}, and no list of numbers")
    return value  # type: ignore[return-value]


def require_state(value: object, path: Path, field: str) -> dict[str, Tensor]:
    """Return name: tensor, each dense, real and on the CPU."""
    for name, tensor in require_keys(value, (), path, field).items():
        if not isinstance(name, str):
            raise damaged(path, field, f"has the name {shown(name)}, which is no text")
        require_tensor(tensor, path, f"{field}.{name}")
    return value  # type: ignore[return-value]


def require_tensor(value: object, path: Path, field: str) -> Tensor:
    """Return a tensor that is dense, real, on the CPU, and no larger than what is stored of it."""
    if not isinstance(value, Tensor):
        raise damaged(path, field, f"is {shown(value)} and no tensor")
    kind = _unusual(value)
    if kind:
        raise damaged(path, field, f"is {kind}; a dense tensor of real numbers is needed")
    return value.detach()


def require_vector(value: object, shape: tuple[int, ...], dtype: torch.dtype, path: Path, field: str) -> Tensor:
    """Return a tensor of finite numbers, of just this shape and dtype."""
    tensor = require_tensor(value, path, field)
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        found = f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
        raise damaged(path, field, f"has shape {found}, not {shape} of {str(dtype).removeprefix('torch.')}")
    if not tensor.isfinite().all():
        raise damaged(path, field, "holds numbers that are not finite")
    return tensor


def require_finite(model: nn.Module, path: str) -> None:
    """Raise `UsageError` where a parameter is not finite; a buffer may hold infinities, as masks do."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UsageError(
                f"{path} holds numbers that are not finite in {name}: it is damaged, or training diverged."
            )


def require_plain(value: object, path: Path, field: str, depth: int = 0) -> None:
    """Raise `UsageError` unless `value` is made of texts, numbers, lists and tables, as JSON is."""
    if depth > DEEPEST:
        raise damaged(path, field, "is nested too deeply")
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise damaged(path, field, f"has the name {shown(key)}, which is no text")
            require_plain(entry, path, _below(field, key), depth + 1)
    elif isinstance(value, list | tuple):
        for entry in value:
            require_plain(entry, path, field, depth + 1)
    elif not isinstance(value, str | int | float | None):
        raise damaged(path, field, f"is {shown(value)}, not plain data")


def damaged(path: Path, field: str, what: str) -> UsageError:
    """The error of a file whose `field` is not what it should be."""
    where = f"In {path}, {shown(field).strip(chr(39))}" if field else str(path)
    return UsageError(f"{where} {what}: the file is damaged; use another one.")


def _unusual(tensor: Tensor) -> str:
    """What kind of tensor it is where it is not a dense one of real numbers; "" where it is."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout is not torch.strided:
        return f"a {str(tensor.layout).removeprefix('torch.').replace('_', ' ')} tensor"
    if tensor.is_quantized:
        return "a quantised tensor"
    if tensor.device.type != "cpu":
        return f"a {tensor.device.type} tensor"
    if tensor.dtype not in _REAL:
        return f"a tensor of {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"a tensor of {tensor.numel():,} numbers that share the memory of fewer"
    return ""


_REAL = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
}  # fmt: skip


def _below(field: str, key: object) -> str:
    return f"{field}.{key}" if field else str(key)
