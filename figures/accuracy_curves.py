"""Test accuracy against communication rounds, without and with MAN."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from figures.drawing import COLUMN, WITH_MAN, WITHOUT_MAN, Drawing, label_bottom, legend_below, new_figure, print_style
from figures.errors import MissingResultsError
from figures.labels import algorithm_label, man_label, partition_label
from figures.results import Result, Results

MOST_ACROSS = 6
"""Panels in a line; more methods go on in the next."""


def draw_accuracy_curves(results: Results) -> Drawing:
    """One panel per partition and algorithm: the mean over seeds, and a band of one standard deviation.

    The axis leaves out the steep beginning; the CSV has it.
    """
    runs = [run for run in results.usual if run.trained]
    if not runs:
        raise MissingResultsError("no run is trained to its end")
    algorithms = [name for name in results.algorithms if any(run.config.algorithm == name for run in runs)]
    rows: list[dict[str, Any]] = []
    across = min(len(algorithms), MOST_ACROSS)
    down = ceil(len(algorithms) / across)
    with print_style():
        figure, grid = new_figure(
            2 * COLUMN if across > 2 else COLUMN,
            0.5 + 1.5 * len(results.rows) * down,
            len(results.rows) * down,
            across,
            sharex=True,
            sharey=True,
        )
        for line, row in zip(np.split(grid, len(results.rows)), results.rows, strict=True):
            for axes, algorithm in zip_longest(line.flat, algorithms):
                if algorithm is None:
                    axes.remove()
                    continue
                for man, colour in ((False, WITHOUT_MAN), (True, WITH_MAN)):
                    found = [run for run in results.select(algorithm, row, man) if run.trained]
                    points = _mean_curve(found)
                    _draw_line(axes, points, colour, man_label(man, results.zetas))
                    key = {"partition": row, "algorithm": algorithm, "man": man, "seeds": len(found)}
                    spread = len(found) > 1  # one seed has none, and no band
                    rows += [{**key, "round": t, "mean": m, "deviation": s if spread else None} for t, m, s in points]
                if row == results.rows[0] or down > 1:
                    axes.set_title(algorithm_label(algorithm))
            for axes in line[:, 0]:
                axes.set_ylabel(f"test accuracy, %\n{partition_label(row)}")
        _set_limits(grid[0, 0], rows)
        label_bottom(figure, "round")
        legend_below(figure)
    return Drawing(figure, rows, results.provenance(runs))


def _mean_curve(runs: Sequence[Result]) -> list[tuple[int, float, float]]:
    """(round, mean, standard deviation) in percent, where every run was evaluated."""
    values: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for t, accuracy in run.curve:
            values[t].append(100 * accuracy)
    return [
        (t, float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else 0.0)
        for t, found in sorted(values.items())
        if len(found) == len(runs)
    ]


def _set_limits(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Begin below the lowest curve after a fifth of the rounds, so that ends can be told apart."""
    last = max(row["round"] for row in rows)
    lowest = min(float(row["mean"] - (row["deviation"] or 0)) for row in rows if row["round"] >= last / 5)
    top = axes.get_ylim()[1]
    axes.set_ylim(lowest - 0.05 * (top - lowest), min(100, top))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))


def _draw_line(axes: Axes, points: Sequence[tuple[int, float, float]], colour: Any, label: str) -> None:
    if not points:
        return
    t, mean, deviation = np.array(points).T
    axes.plot(t, mean, "o" if len(points) == 1 else "-", color=colour, label=label, lw=1.2, ms=3)
    axes.fill_between(t, mean - deviation, mean + deviation, color=colour, alpha=0.25, lw=0)
