"""What a model keeps from a run is forgotten: every run is to be as its first."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_TORCHS_OWN = set(vars(nn.Module())) - {"_buffers", "training"}
"""Attributes of a module that hold its parameters, parts and hooks."""


@contextmanager
def forgotten(model: nn.Module) -> Iterator[None]:
    """Within the block a model may keep what it likes in its attributes; afterwards they are as they were.

    A cache of what was computed from parameters would be a constant in the next run: no derivative would go through
    it, and no other parameters would reach it. Containers are emptied to what they held; tensors are not looked into.
    """
    before = [(module, _attributes(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            now = vars(module)
            for name in now.keys() - attributes.keys() - _TORCHS_OWN:
                del now[name]
            for name, (value, content) in attributes.items():
                now[name] = value
                _refill(value, content)


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute, and what it holds if it is a container."""
    containers = (dict, list, set)
    return {
        name: (value, value.copy() if isinstance(value, containers) else None)
        for name, value in vars(module).items()
        if name not in _TORCHS_OWN
    }


def _refill(value: Any, content: Any) -> None:
    if isinstance(value, list):
        value[:] = content
    elif isinstance(value, dict | set):
        value.clear()
        value.update(content)
