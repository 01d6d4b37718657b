"""Numbers that a measurement itself does not vouch for, and how tables and figures mark them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

MEANING = "○ not converged, or a larger one is not excluded"
"""Of the ring around a mark."""

MEANINGS = {"!": "not converged", "~": "exact to rounding alone"}
"""Of the marks, as the commands use them too."""

Saved = Mapping[str, Any]


def _local_tops(local: Saved) -> list[Saved]:
    return [client["own_at_own"]["eigenvalues"][0] for client in local.get("clients", ())]


def _top(eigs: Saved) -> list[Saved]:
    return [eigs["global"]["eigenvalues"][0]]


BEHIND: Mapping[str, tuple[str, Callable[[Saved], list[Saved]]]] = {
    "top_eigenvalue": ("eigs", _top),
    "λ₁": ("eigs", _top),
    "trace": ("trace", lambda trace: [trace]),
    "relative": ("flatness", lambda flatness: [flatness.get("trace") or {}]),
    "local λ₁": ("local", _local_tops),
    "local trace": ("local", lambda local: [c["own_at_own"].get("trace") or {} for c in local.get("clients", ())]),
    "excess": ("local", lambda local: [*_local_tops(local), *(_top(local) if local.get("global") else [])]),
}
"""Of every number of a run that may not have converged, as fields and tables call it: the measurement that it is from,
and the saved numbers that it is made of."""


def is_unconverged(entry: Saved) -> bool:
    """Whether the saved number says so; one that says nothing, from an earlier version, counts as converged."""
    return entry.get("converged") is False


def doubt(entry: Saved) -> str:
    """The mark of a saved number; empty where it converged."""
    return ("~" if entry.get("rounded") else "!") if is_unconverged(entry) else ""


def worst(marks: Iterable[str]) -> str:
    """The mark of what is made of numbers with these: "!" before "~"."""
    return min(filter(None, marks), default="")


def explained(title: str, marks: Iterable[str]) -> str:
    """The title of a figure, and below it what the marks in it mean."""
    found = set(marks)
    lines = [f"{mark} {meaning}" for mark, meaning in MEANINGS.items() if mark in found]
    return "\n".join(filter(None, [title, "; ".join(lines)]))
