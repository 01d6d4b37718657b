"""What several tables say below of the runs in them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from figures.labels import algorithm_label, partition_label
from figures.paper import PAPER_ROUNDS, SOURCE
from figures.results import Result, Results
from figures.unconverged import MEANINGS


def tuned_notes(results: Results) -> list[str]:
    """The hyperparameters in which the two halves of a row differ, since the grid's preset has other ones for MAN."""
    found = []
    for place in results.rows:
        for algorithm in results.algorithms:
            without, under = (_hyper(results, algorithm, place, man) for man in (False, True))
            changed = [name for name in without if name in under and under[name] != without[name]]
            words = ", ".join(f"{name} {_word(without[name])} and {_word(under[name])}" for name in changed)
            found += [f"{algorithm_label(algorithm)}, {partition_label(place)}: {words}"] if words else []
    return [f"As the preset says, without and with MAN: {'; '.join(found)}."] if found else []


def _hyper(results: Results, algorithm: str, place: str, man: bool) -> dict[str, Any]:
    runs = results.select(algorithm, place, man)
    return dict(runs[0].config.plain().get("hyper", {})) if runs else {}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def doubt_notes(runs: Iterable[Result], measure: str) -> list[str]:
    """What the marks of a table of one number mean, and the runs that they are for."""
    runs = list(runs)
    notes = []
    for mark, meaning in MEANINGS.items():
        names = [run.name for run in runs if run.doubt(measure) == mark]
        words = _NOT_CONVERGED.get(measure, meaning) if mark == "!" else f"{meaning}, which is above the tolerance"
        notes += [f"{mark} {words}: {', '.join(names)}."] if names else []
    return notes


_NOT_CONVERGED = {
    "top_eigenvalue": "not converged, or a larger one is not excluded",
    "trace": "not converged, the standard error being above the share of the trace that was asked for",
}


def mark_notes(numbers: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the marks of a table of many numbers mean, where there are any."""
    marks = {number["doubt"] for number in numbers}
    return [
        f"{mark} of a run behind it the number is {meaning}, as its measurement says."
        for mark, meaning in MEANINGS.items()
        if mark in marks
    ]


def precision_notes(results: Results) -> list[str]:
    """What the runs were trained in, where that is not IEEE arithmetic throughout."""
    precisions = {run.config.plain().get("precision", "ieee") for run in results.usual if run.trained}
    if precisions <= {"ieee"}:
        return []
    return [f"Trained in {' or '.join(sorted(precisions))}; curvature is measured in IEEE arithmetic."]


def paper_notes(results: Results) -> list[str]:
    """The source, and a warning where the runs are not of the paper's length and data."""
    plain = [run.config.plain() for run in results.usual if run.trained]
    rounds = sorted({fields["rounds"] for fields in plain} - {PAPER_ROUNDS})
    part = any(fields.get("train_samples") is not None for fields in plain)
    if not rounds and not part:
        return [f"Paper: {SOURCE}."]
    ours = [f"after {' or '.join(map(str, rounds))} rounds"] * bool(rounds) + ["on a part of the data"] * part
    return [
        f"Paper: {SOURCE}, after {PAPER_ROUNDS} rounds on all data. The runs here are {' and '.join(ours)}: only signs "
        "and ratios can be compared with the paper's."
    ]
