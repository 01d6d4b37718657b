"""The table of what MAN changes in every method."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from figures.decimals import factor_shown, interval_places
from figures.errors import MissingResultsError
from figures.finished_methods import FEWEST, finished_methods, left_out_notes
from figures.labels import algorithm_label, partition_label
from figures.method_tables import MEASURES, by_ratios, doubt_of, measured, unmeasured_notes, unsteady_notes
from figures.results import Results
from figures.shown import marked
from figures.simultaneous import changes
from figures.statistics import factor
from figures.table import Table
from figures.table_notes import mark_notes, tuned_notes

_NOTE = (
    "Runs with MAN against those without at the same seed (×: geometric mean of the ratios; else mean of the "
    "differences), with simultaneous 95 % intervals (spread pooled over methods, Bonferroni over the methods of a "
    "partition in a column). Less is better throughout: - lower, + higher, where the interval leaves out no change."
)


def man_table(results: Results) -> Table:
    """Every method's change under MAN, by every measure, corrected for the number of methods."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    numbers: list[dict[str, Any]] = []
    for place in results.rows:
        for number in _changes(results, place):
            cells.setdefault((place, number["algorithm"]), {})[number["measure"]] = _shown(number)
            numbers.append(number)
    measures = [m for m in MEASURES if any(number["measure"] == m for number in numbers)]
    if not measures:
        raise MissingResultsError(f"no {FEWEST} methods are finished without and with MAN at two seeds in common")
    return Table(
        "man",
        "What MAN changes in every method",
        (
            _NOTE,
            *unsteady_notes(numbers, "its own seeds alone make its interval there"),
            *mark_notes(numbers),
            *unmeasured_notes(results),
            *tuned_notes(results),
            *left_out_notes(results),
        ),
        ("partition", "method", *measures),
        tuple(
            (partition_label(place), algorithm_label(algorithm), *(row.get(measure, "") for measure in measures))
            for (place, algorithm), row in cells.items()
        ),
        tuple(numbers),
    )


def _changes(results: Results, place: str) -> list[dict[str, Any]]:
    """Of one row: the change of every measure in every method that is there without and with MAN."""
    methods, seeds = finished_methods(results, place)
    both = [algorithm for algorithm, man in methods if man and (algorithm, False) in methods]
    found: list[dict[str, Any]] = []
    for measure in MEASURES:
        without, under = (measured({(a, man): methods[a, man] for a in both}, seeds, measure) for man in (False, True))
        if without is None or under is None:
            continue
        ratio = by_ratios(measure, np.stack([without, under]))
        found_changes = changes(*(np.log([without, under]) if ratio else (without, under)))
        for algorithm, mean, half, own in zip(both, *(part.tolist() for part in found_changes), strict=True):
            ends = {"change": mean, "low": mean - half, "high": mean + half}
            change = {name: factor(value) for name, value in ends.items()} if ratio else ends
            about = {"partition": place, "algorithm": algorithm, "measure": measure, "ratio": ratio, "unsteady": own}
            mark = doubt_of([methods[algorithm, man] for man in (False, True)], seeds, measure)
            found.append({**about, **change, "doubt": mark})
    return found


def _shown(number: Mapping[str, Any]) -> str:
    change, low, high = (number[name] for name in ("change", "low", "high"))
    none = 1 if number["ratio"] else 0
    verdict = " -" if high < none else " +" if low > none else ""
    places = interval_places(change, low, high, 2, none)
    if number["ratio"]:
        change, low, high = (factor_shown(end, places) for end in (change, low, high))
        return marked(f"×{change} [{low}, {high}]{verdict}", number["doubt"])
    return marked(f"{change:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]{verdict}", number["doubt"])
