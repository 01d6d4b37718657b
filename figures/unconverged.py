"""Eigenvalues that a measurement itself does not vouch for, and how figures mark them."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

MEANING = "○ not converged, or a larger one is not excluded"


def is_unconverged(entry: Mapping[str, Any]) -> bool:
    """Whether the saved eigenvalue says so; one that says nothing, from an earlier version, counts as converged."""
    return entry.get("converged") is False


def ring(axes: Axes, rounds: Sequence[int], entries: Sequence[Mapping[str, Any]], colour: Any) -> bool:
    """Put a hollow mark on those of the eigenvalues (against rounds) that are not converged; whether there are any."""
    found = [(t, entry["value"]) for t, entry in zip(rounds, entries, strict=True) if is_unconverged(entry)]
    for t, value in found:
        axes.plot(t, value, "o", color=colour, mfc="white", ms=4.5)
    return bool(found)
