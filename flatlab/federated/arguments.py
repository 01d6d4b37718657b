"""What the functions of an algorithm are given, and whether one has changed it: it is not theirs alone.

In one process a client's vectors are rows of the server's copy, in several they are memory that all share; the server's
own are the run's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from torch import Tensor

from flatlab.federated.algorithms.base import Client, Round

ARGUMENTS = {
    "initial": ("w_0", "hyper"),
    "start": ("w", "server", "hyper", "t"),
    "terms": ("client",),
    "ascent": ("client", "theta", "g"),
    "during": ("client", "ascent"),
    "lookahead": ("client", "theta", "k"),
    "rate": ("client", "k"),
    "keep": ("client", "delta"),
    "combine": ("round_",),
    "models": ("w", "server"),
}
"""Of each function, as base.py calls them."""

Versions = Mapping[str, tuple[Tensor, int]]
"""Tensors by name, each with torch's count of its changes."""


def by_name(function: str, arguments: Sequence[object]) -> dict[str, object]:
    """The arguments of that function by their names."""
    return dict(zip(ARGUMENTS[function], arguments, strict=True))


def versions(given: Mapping[str, object]) -> Versions:
    """Every tensor among the arguments, by what the function calls it, as client.own['h']."""
    found: dict[str, tuple[Tensor, int]] = {}
    for name, value in given.items():
        if isinstance(value, Tensor):
            found[name] = value, value._version
        elif isinstance(value, Mapping):
            found |= versions({f"{name}[{key!r}]": entry for key, entry in value.items()})
        elif isinstance(value, Client | Round):
            found |= versions({f"{name}.{field.name}": getattr(value, field.name) for field in fields(value)})
    return found


def changed(before: Versions, after: Versions) -> Iterator[str]:
    """Names of the tensors that were changed, taken out of a dictionary, or put there."""
    for name in {**before, **after}:
        (old, count), (new, counted) = before.get(name, (None, 0)), after.get(name, (None, 0))
        if old is not new or count != counted:
            yield name
