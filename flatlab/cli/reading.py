"""What two measurements say in words: the numbers as they are, whichever way they fall."""

from typing import Any


def compare(without: dict[str, Any], with_man: dict[str, Any]) -> str:
    """Say what changed from a run without MAN to the one with it, from their saved `eigs` results."""
    pairs = list(zip(without["layers"], with_man["layers"], strict=True))
    hidden = pairs[:-1]
    norms = [sum(layer[side]["output_norm2"] or 0.0 for layer in hidden) for side in (0, 1)]
    tops = [_top(result["global"]) for result in (without, with_man)]
    accuracies = [result["run"]["metrics"]["test_accuracy"] for result in (without, with_man)]
    fell = [a["name"] for a, b in pairs if _top(b) < _top(a)]
    rose = [a["name"] for a, b in pairs if _top(b) >= _top(a)]
    return (
        f"With MAN, mean |a|² of the hidden layers {_change(*norms)}; "
        f"the top eigenvalue of the network {_change(*tops)}; "
        f"of its layers, {_list(fell)} fell and {_list(rose)} did not; "
        f"test accuracy went from {accuracies[0]:.2%} to {accuracies[1]:.2%}. "
        "This is one seed: flatlab verify --study asks whether it holds over many."
    )


def _top(entry: dict[str, Any]) -> float:
    return float(entry["eigenvalues"][0]["value"])


def _change(before: float, after: float) -> str:
    verb = "fell" if after < before else "rose"
    return f"{verb} from {before:.4g} to {after:.4g} (x {after / before:.2f})"


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"
