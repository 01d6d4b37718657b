"""Tables that compare many methods: their ranks by each measure of flatness, and which measures agree."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from figures.decimals import readable, three_digits
from figures.errors import MissingResultsError
from figures.finished_methods import FEWEST, Method, finished_methods, left_out_notes, method_label
from figures.labels import partition_label
from figures.results import Result, Results
from figures.shown import marked
from figures.simultaneous import agreement, all_tied, ranks, unsteady
from figures.statistics import factor
from figures.table import Table
from figures.table_notes import mark_notes, tuned_notes
from figures.unconverged import worst


def _of(run: Result, kind: str, read: Callable[[dict[str, Any]], float | None]) -> float | None:
    return read(run.measured[kind]) if kind in run.measured else None


def count_above_one(density: Mapping[str, Any]) -> float:
    """How many eigenvalues are above 1, from what `flatlab density` saves; the mean over its probes.

    Counted by stochastic Lanczos quadrature, as Lin, Saad & Yang (SIAM Review 58, 2016) do.
    """
    probes = list(zip(density["nodes"], density["node_weights"], strict=True))
    shares = [sum(weight for at, weight in zip(nodes, weights, strict=True) if at > 1) for nodes, weights in probes]
    return float(density["size"] * np.mean(shares))


MEASURES: dict[str, Callable[[Result], float | None]] = {
    "error": lambda run: None if run.accuracy is None else 100 - 100 * run.accuracy,
    "λ₁": lambda run: run.top_eigenvalue,
    "trace": lambda run: run.trace,
    "above 1": lambda run: _of(run, "density", lambda m: count_above_one(m) if "node_weights" in m else None),
    "relative": lambda run: _of(run, "flatness", lambda m: sum(layer["by_trace"] for layer in m["layers"])),
    "adaptive": lambda run: _of(run, "flatness", lambda m: m["adaptive_sharpness"]["value"]),
    "worst": lambda run: _of(run, "flatness", lambda m: (m.get("worst_case_sharpness") or {}).get("value")),
    "local λ₁": lambda run: _of(run, "local", lambda m: m["means"]["eigenvalue"]["own_at_own"]),
    "local trace": lambda run: _of(run, "local", lambda m: m["means"].get("trace", {}).get("own_at_own")),
    "excess": lambda run: _of(run, "local", lambda m: m["means"]["eigenvalue"]["discrepancy"]),
}
"""Numbers of a run of which less is better."""

DIFFERENCES = ("error", "excess")
"""Those compared by differences; the others, which are positive and vary by factors, by ratios."""

_NAMED = 5
"""Runs that a note names; of more it says how many."""

FEWEST_AGREEING = 8
"""Methods that an interval of a correlation over methods needs."""


def ranks_table(results: Results) -> Table:
    """Every method, without and with MAN, with its place by each measure."""
    numbers: list[dict[str, Any]] = []
    apart: dict[str, str] = {}
    for place in results.rows:
        ranked, least = _ranked(results, place)
        numbers += ranked
        apart |= {partition_label(place): least} if ranked else {}
    measures = [m for m in MEASURES if any(number["measure"] == m for number in numbers)]
    if not measures:
        raise MissingResultsError(f"no {FEWEST} methods are finished at two seeds in common")
    several = len(apart) > 1
    note = ", ".join(f"{place} ({least})" if several else least for place, least in apart.items())
    return Table(
        "ranks",
        "Methods by error and flatness: rank [best, worst]",
        (
            "error: of the test, %; above 1: how many eigenvalues are, by the density; relative: layers' squared "
            "weights times traces, added up; adaptive: sharpness of one step; worst: of twenty, within 0.1 % of every "
            "weight; local λ₁ and trace: of clients' losses at their own models, mean over clients; excess: λ₁ of the "
            "global loss less the local one.",
            "Less is better. Of all methods of a partition, with and without MAN: rank by the mean over seeds, and the "
            "best and worst one that 95 % simultaneous comparisons (Tukey, seeds as blocks) leave it. Means, of what "
            f"varies by factors geometric ones, are told apart from these differences on: {note}.",
            *unsteady_notes(numbers, "nothing is told of its rank there"),
            *mark_notes(numbers),
            *unmeasured_notes(results),
            *tuned_notes(results),
            *left_out_notes(results),
        ),
        ("partition", "method", *measures),
        tuple(_rank_rows(numbers, measures)),
        tuple(numbers),
    )


def _ranked(results: Results, place: str) -> tuple[list[dict[str, Any]], str]:
    """Of one row: every method's rank by every measure, and from which difference on means are told apart."""
    methods, seeds = finished_methods(results, place)
    numbers: list[dict[str, Any]] = []
    apart = []
    for measure in MEASURES:
        values = measured(methods, seeds, measure)
        if values is None:
            continue
        ratios = by_ratios(measure, values)
        own = compared(measure, values)
        found, difference = ranks(own)
        least = f"a factor of {_factor(factor(difference))}" if ratios else _rounded(difference)
        apart.append(f"{measure} {least}")
        for of, rank, alone in zip(methods, found, unsteady(own).tolist(), strict=True):
            method = {"partition": place, "algorithm": of[0], "man": of[1], "measure": measure, "unsteady": alone}
            mean = factor(rank.mean) if ratios else rank.mean
            numbers.append({**method, **vars(rank), "mean": mean, "doubt": doubt_of([methods[of]], seeds, measure)})
    return numbers, "; ".join(apart)


def unsteady_notes(numbers: Sequence[Mapping[str, Any]], hence: str) -> list[str]:
    """Of methods whose seeds lie much farther apart than those of the others: by which measures, and what follows."""
    found: dict[str, dict[str, None]] = {}
    for number in numbers:
        if number["unsteady"]:
            found.setdefault(method_label(number["algorithm"], number.get("man", False)), {})[number["measure"]] = None
    return [
        f"{method} makes up most of the spread over seeds by itself in {', '.join(measures)}: it is left out of the "
        f"spread of the others, and {hence}."
        for method, measures in found.items()
    ]


def _rank_rows(numbers: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Partition, method and ranks, in the order of the first measure's."""
    by = {(n["partition"], n["algorithm"], n["man"], n["measure"]): n for n in numbers}
    ordered = sorted(numbers, key=lambda n: (n["partition"], n["measure"] != measures[0], n["rank"]))
    for place, algorithm, man in dict.fromkeys((n["partition"], n["algorithm"], n["man"]) for n in ordered):
        cells = [by.get((place, algorithm, man, measure)) for measure in measures]
        shown = [_shown(cell) if cell else "" for cell in cells]
        yield (partition_label(place), method_label(algorithm, man), *shown)


def agreement_table(results: Results) -> Table:
    """Rank correlations of the measures over methods."""
    rows, numbers, enough = [], [], False
    for place in results.rows:
        methods, seeds = finished_methods(results, place)
        kin = [algorithm for algorithm, _ in methods]
        if len(set(kin)) < FEWEST_AGREEING:
            continue
        found = {measure: measured(methods, seeds, measure) for measure in MEASURES}
        enough = enough or any(values is not None for values in found.values())
        values = {m: compared(m, v) for m, v in found.items() if v is not None}
        for (one, a), (other, b) in combinations([(m, v) for m, v in values.items() if not all_tied(v)], 2):
            rho, low, high = agreement(a, b, kin)
            mark = worst(doubt_of(methods.values(), seeds, measure) for measure in (one, other))
            shown = marked(f"{rho:+.2f} [{low:+.2f}, {high:+.2f}]", mark)
            rows.append((partition_label(place), f"{one} and {other}", shown))
            about = {"partition": place, "one": one, "other": other, "doubt": mark}
            numbers.append({**about, "spearman": rho, "low": low, "high": high})
    if not rows and enough:
        raise MissingResultsError("no two measures are there by which the methods differ")
    if not rows:
        raise MissingResultsError(f"no {FEWEST_AGREEING} methods are finished at two seeds in common")
    note = (
        "Spearman's correlation over methods, with and without MAN, of the means over seeds by which they are ranked; "
        "95 % interval (BCa bootstrap) by drawing methods anew, each with its run under MAN. A measure by which all "
        "methods tie has none."
    )
    return Table(
        "agreement",
        "Which measures agree",
        (note, *mark_notes(numbers), *unmeasured_notes(results), *left_out_notes(results)),
        ("partition", "measures", "correlation"),
        tuple(rows),
        tuple(numbers),
    )


def _shown(cell: Mapping[str, Any]) -> str:
    return marked(f"{cell['rank']} [{cell['best']}, {cell['worst']}]", cell["doubt"])


def doubt_of(methods: Iterable[Mapping[int, Result]], seeds: Sequence[int], measure: str) -> str:
    """The mark of what is made of a number of the methods' runs at these seeds."""
    return worst(runs[seed].doubt(measure) for runs in methods for seed in seeds)


def _rounded(number: float) -> str:
    return f"{number:.{three_digits(number)}f}"


def _factor(ratio: float) -> str:
    """One of which it can be seen how far it is from 1."""
    return f"{ratio:.{readable(ratio - 1, ratio, three_digits(ratio))}f}"


def by_ratios(measure: str, values: NDArray[np.float64]) -> bool:
    """Whether numbers of this measure are compared by ratios: so they are unless one is not positive."""
    return measure not in DIFFERENCES and bool((values > 0).all())


def compared(measure: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The numbers whose means over seeds are compared: logarithms where ratios are."""
    return np.log(values) if by_ratios(measure, values) else values


def measured(
    methods: Mapping[Method, Mapping[int, Result]], seeds: list[int], measure: str
) -> NDArray[np.float64] | None:
    """(methods, seeds); None where there are too few, or one has no such number."""
    if len({algorithm for algorithm, _ in methods}) < FEWEST or len(seeds) < 2:
        return None
    values = np.array([[_number(runs[seed], measure) for seed in seeds] for runs in methods.values()], dtype=np.float64)
    return values if np.isfinite(values).all() else None


def unmeasured_notes(results: Results) -> list[str]:
    """The measures that some runs have and others have not, and which these are: no table compares by them."""
    found: dict[str, list[str]] = {}
    for place in results.rows:
        methods, seeds = finished_methods(results, place)
        runs = [of[seed] for of in methods.values() for seed in seeds]
        for measure in MEASURES:
            without = [run.name for run in runs if not math.isfinite(_number(run, measure))]
            if 0 < len(without) < len(runs):
                found.setdefault(measure, []).extend(without)
    return [
        f"{measure} is left out where runs lack it, or it is not finite: {', '.join(names[:_NAMED])}"
        f"{f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''}."
        for measure, names in found.items()
    ]


def _number(run: Result, measure: str) -> float:
    value = MEASURES[measure](run)
    return math.nan if value is None else value
