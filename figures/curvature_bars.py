"""Top eigenvalue and trace of the Hessian at the end of training, without and with MAN."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from figures.drawing import COLUMN, WITH_MAN, WITHOUT_MAN, Drawing, legend_below, new_figure, print_style, put_mark
from figures.errors import MissingResultsError
from figures.grouped_bars import DECADES, MOST_LEVEL
from figures.labels import algorithm_label, man_label, partition_label
from figures.results import Result, Results, require_alike
from figures.statistics import Sample, sample
from figures.unconverged import explained, worst

QUANTITIES = {"top eigenvalue": "top_eigenvalue", "trace": "trace"}


MOST_BESIDE = 8
"""Algorithms up to which the quantities stand side by side; of more, one below the other."""


def draw_curvature_bars(results: Results) -> Drawing:
    """Eigenvalue and trace, a row per partition; bars are means over seeds, whiskers standard deviations.

    A mark stands above the bars of runs that did not all converge.
    """
    runs = [run for run in results.usual if run.top_eigenvalue is not None or run.trace is not None]
    if not runs:
        raise MissingResultsError("no run has its final.eigs.json or final.trace.json")
    require_alike(runs, "eigs")
    require_alike(runs, "trace")
    partitions = [name for name in results.rows if any(run.row == name for run in runs)]
    algorithms = [name for name in results.algorithms if any(run.config.algorithm == name for run in runs)]
    quantities = [title for title, name in QUANTITIES.items() if any(getattr(run, name) is not None for run in runs)]
    beside = len(algorithms) <= MOST_BESIDE
    shape = (len(partitions), len(quantities)) if beside else (len(partitions) * len(quantities), 1)
    rows: list[dict[str, Any]] = []
    with print_style():
        figure, grid = new_figure(
            (1.5 if beside and len(algorithms) <= 3 else 2) * COLUMN,
            0.5 + 1.6 * shape[0],
            *shape,
            sharex=True,
            sharey="col" if beside else False,
        )
        panels = iter(grid.flat)
        for partition in partitions:
            for title in quantities:
                axes = next(panels)
                rows += _draw_bars(axes, results, algorithms, partition, title)
                if beside:
                    axes.set(title=title if partition == partitions[0] else "")
                axes.set_ylabel(("" if beside else f"{title}\n") + partition_label(partition))
        legend_below(figure)
        if doubts := explained("", (run.doubt(name) for run in runs for name in QUANTITIES.values())):
            figure.suptitle(doubts, fontsize=6)
    return Drawing(figure, rows, results.provenance(runs))


def _draw_bars(axes: Axes, results: Results, algorithms: list[str], partition: str, title: str) -> list[dict[str, Any]]:
    """Draw one quantity, without and with MAN; returns its numbers. What spans decades is drawn by its logarithm."""
    rows: list[dict[str, Any]] = []
    for side, man in enumerate((False, True)):
        same = [results.select(algorithm, partition, man) for algorithm in algorithms]
        found = [_over_seeds(own, QUANTITIES[title]) for own in same]
        doubts = [[run.doubt(QUANTITIES[title]) for run in own] for own in same]
        place = np.arange(len(algorithms)) + 0.4 * (side - 0.5)
        heights = [s.mean if s else np.nan for s in found]
        errors = [(s.deviation or 0.0) if s else 0.0 for s in found]
        colour, label = (WITHOUT_MAN, WITH_MAN)[side], man_label(man, results.zetas)
        axes.bar(place, heights, 0.38, yerr=errors, color=colour, label=label, error_kw={"lw": 0.8})
        for x, height, error, own in zip(place, heights, errors, doubts, strict=True):
            put_mark(axes, x, height + error, worst(own))
        key = {"partition": partition, "quantity": title, "man": man}
        rows += [
            {
                **key,
                "algorithm": a,
                "mean": s.mean,
                "deviation": s.deviation,
                "seeds": s.count,
                "unconverged": sum(map(bool, own)),
            }
            for a, s, own in zip(algorithms, found, doubts, strict=True)
            if s
        ]
    means = [row["mean"] for row in rows]
    if means and min(means) > 0 and max(means) > DECADES * min(means):
        axes.set_yscale("log")
    slanted = len(algorithms) > MOST_LEVEL
    names = [algorithm_label(a) for a in algorithms]
    axes.set_xticks(range(len(names)), names, rotation=60 if slanted else 0, ha="right" if slanted else "center")
    axes.grid(visible=False, axis="x")
    return rows


def _over_seeds(runs: Sequence[Result], name: str) -> Sample | None:
    values = [getattr(run, name) for run in runs]
    return sample([value for value in values if value is not None])
