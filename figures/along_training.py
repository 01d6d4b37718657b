"""Curvature along training: top eigenvalue of the network and of each layer against rounds, without and with MAN."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt

from figures.labels import man_label
from figures.results import Result, Results
from figures.saving import COLUMN, WITH_MAN, WITHOUT_MAN, Drawing, paper_style, plain_log_ticks

NETWORK = "network"
MOST_BESIDE = 4
"""Panels in a row."""


def draw_along_training(results: Results) -> Drawing:
    """Two runs that differ in MAN alone; one panel for the network, one per layer, all of the same logarithmic axis.

    From the eigenvalues that the run tracked (`flatlab train --track-eigs`), or those of its saved checkpoints.
    """
    runs = results.pair("eigs", _points, "eigenvalues of several rounds (of round-*.pt, or tracked)")
    names = list(next(iter(_points(runs[0]).values())))
    lines = -(-len(names) // MOST_BESIDE)
    columns = -(-len(names) // lines)
    rows: list[dict[str, Any]] = []
    with paper_style():
        figure, grid = plt.subplots(
            lines,
            columns,
            figsize=(2 * COLUMN, 0.7 + 1.4 * lines),
            squeeze=False,
            sharex=True,
            sharey=True,
            constrained_layout=True,
        )
        for axes, name in zip(grid.flat, names, strict=False):
            for run, colour in zip(runs, (WITHOUT_MAN, WITH_MAN), strict=True):
                points = {t: values[name] for t, values in _points(run).items() if name in values}
                label = man_label(run.config.man, [run.config.zeta])
                axes.plot(list(points), list(points.values()), "o-", color=colour, ms=2.5, lw=1, label=label)
                rows += [{"run": run.name, "round": t, "block": name, "eigenvalue": v} for t, v in points.items()]
            axes.set(title=name, yscale="log")
        for place, axes in enumerate(grid.flat):
            if place >= len(names):
                axes.set_visible(False)
            elif place >= len(names) - columns:  # nothing below it
                axes.set_xlabel("round")
                axes.tick_params(labelbottom=True)
        plain_log_ticks(grid[0, 0].yaxis)
        for axes in grid[:, 0]:
            axes.set_ylabel("top eigenvalue")
        figure.suptitle(runs[0].setting, fontsize=8)
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        plt.close(figure)
    return Drawing(figure, rows, results.provenance(runs))


def _points(run: Result) -> dict[int, dict[str, float]]:
    """round: {"network" or a layer: its top eigenvalue}; empty with fewer than two rounds."""
    points = {
        record["round"]: {NETWORK: _value(record["curvature"]["global"])}
        | {name: _value(layer) for name, layer in record["curvature"]["layers"].items()}
        for record in run.records
        if "curvature" in record
    }
    if not points:
        saved = [*run.training, *([run.measured["eigs"]] if "eigs" in run.measured else [])]
        points = {
            eigs["run"]["round"]: {NETWORK: _value(eigs["global"]["eigenvalues"][0])}
            | {layer["name"]: _value(layer["eigenvalues"][0]) for layer in eigs["layers"]}
            for eigs in saved
        }
    return points if len(points) > 1 else {}


def _value(entry: Mapping[str, Any]) -> float:
    return float(entry["value"])
