"""What crosses between server and nodes: tensors and plain data as bytes, never a pickle."""

import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from flatlab.errors import FlatlabError

_LENGTH = 8
"""Bytes of the number, least byte first, that says how long the plain data are."""


def pack(plain: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """Plain data, as JSON, and tensors by name, as safetensors."""
    text = json.dumps(plain, separators=(",", ":")).encode()
    # a copy each: safetensors refuses tensors that share memory, as rows of a stack do
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in (tensors or {}).items()}
    return len(text).to_bytes(_LENGTH, "little") + text + save(copies)


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `pack` was given; raises `FlatlabError` for bytes that it did not make."""
    end = _LENGTH + int.from_bytes(message[:_LENGTH], "little")
    try:
        plain = json.loads(message[_LENGTH:end])
        tensors = load(message[end:])
    except (ValueError, SafetensorError) as error:
        raise FlatlabError("A message over Flower is not one of flatlab's: run the same flatlab everywhere.") from error
    if not isinstance(plain, dict):
        raise FlatlabError("A message over Flower is not one of flatlab's: run the same flatlab everywhere.")
    return plain, tensors
