"""Which methods of a row are compared with one another, at which seeds, and which are left out."""

from collections import Counter
from collections.abc import Callable
from itertools import combinations_with_replacement

import numpy as np

from figures.labels import algorithm_label, partition_label
from figures.results import Result, Results, require_alike, require_same_round

FEWEST = 4
"""Algorithms that a comparison of methods needs."""

Method = tuple[str, bool]
"""An algorithm, without or with MAN."""

Methods = dict[Method, dict[int, Result]]
"""Runs by seed."""


def finished_methods(results: Results, place: str) -> tuple[Methods, list[int]]:
    """The runs of every method by seed, and the seeds at which all of them are finished.

    Those of `failed_methods` are left out: one seed of theirs would decide what spread all others are taken to have;
    those of `unfinished_methods`, for which all others would lose seeds; and those of `unevaluated_methods`.
    """
    for kind in ("eigs", "trace", "density", "flatness", "local"):
        require_alike(results.usual, kind)
    require_same_round([run for run in results.usual if run.row == place], "local")
    methods = _trained(results, place)
    for left_out in [of for find in LEFT_OUT.values() for of in find(results, place)]:
        del methods[left_out]
    seeds = sorted(set.intersection(*(set(runs) for runs in methods.values()))) if methods else []
    return methods, seeds


def unevaluated_methods(results: Results, place: str) -> list[Method]:
    """Methods with a finished run of which no accuracy after its last round is known."""
    methods = _trained(results, place)
    return [of for of, runs in methods.items() if any(run.accuracy is None for run in runs.values())]


def failed_methods(results: Results, place: str) -> list[Method]:
    """Methods with a run whose accuracy is below half the median of all runs: it did not learn, or collapsed."""
    methods = _trained(results, place)
    for unevaluated in unevaluated_methods(results, place):
        del methods[unevaluated]
    accuracies = {
        of: [run.accuracy for run in runs.values() if run.accuracy is not None] for of, runs in methods.items()
    }
    if not accuracies:
        return []
    half = float(np.median(np.concatenate(list(accuracies.values())))) / 2
    return [of for of, found in accuracies.items() if min(found) < half]


def unfinished_methods(results: Results, place: str) -> list[Method]:
    """Methods without which the most others are finished at two seeds in common; none where no `FEWEST` are."""
    methods = _trained(results, place)
    for left_out in (*unevaluated_methods(results, place), *failed_methods(results, place)):
        del methods[left_out]
    kept = _most_at_two_seeds(methods)
    return [of for of in methods if of not in kept] if _algorithms(kept) >= FEWEST else []


LEFT_OUT: dict[str, Callable[[Results, str], list[Method]]] = {
    "a run has no accuracy after its last round": unevaluated_methods,
    "a run's accuracy is below half the median": failed_methods,
    "a run at one of the seeds compared is not finished": unfinished_methods,
}
"""The reasons to leave a method out, and which it is for; no method has two."""


def left_out_notes(results: Results) -> list[str]:
    """Which methods are left out, and why."""
    notes = []
    for reason, methods in LEFT_OUT.items():
        found = {place: [method_label(*of) for of in methods(results, place)] for place in results.rows}
        names = [
            f"{name} ({partition_label(place)})" if len(results.rows) > 1 else name
            for place, labels in found.items()
            for name in labels
        ]
        notes += [f"Left out, since {reason}: {', '.join(names)}."] if names else []
    return notes


def method_label(algorithm: str, man: bool) -> str:
    """The algorithm, with MAN where it is on."""
    return f"{algorithm_label(algorithm)}{' + MAN' if man else ''}"


def _trained(results: Results, place: str) -> Methods:
    methods: Methods = {}
    for algorithm in results.algorithms:
        for man in (False, True):
            runs = {run.config.seed: run for run in results.select(algorithm, place, man) if run.trained}
            if runs:
                methods[algorithm, man] = runs
    return methods


def _most_at_two_seeds(methods: Methods) -> frozenset[Method]:
    """The most methods that are finished at two seeds in common, and of as many those with the most such seeds.

    Two seeds decide: at more of them no more methods are finished. Enough algorithms for a comparison go before more
    methods.
    """
    seeds = sorted({seed for runs in methods.values() for seed in runs})
    at = Counter(frozenset(of for of, runs in methods.items() if seed in runs) for seed in seeds)
    pairs = [one & other for one, other in combinations_with_replacement(at, 2) if one != other or at[one] > 1]

    def worth(kept: frozenset[Method]) -> tuple[int, int, int]:
        common = sum(count for finished, count in at.items() if kept <= finished)
        return min(_algorithms(kept), FEWEST), len(kept), common

    return max(pairs, key=worth, default=frozenset())


def _algorithms(methods: frozenset[Method]) -> int:
    return len({algorithm for algorithm, _ in methods})
