"""Curvature along training: top eigenvalue of the network and of each layer against rounds, without and with MAN."""

from collections.abc import Iterator, Mapping
from typing import Any

from figures.drawing import (
    COLUMN,
    WITH_MAN,
    WITHOUT_MAN,
    Drawing,
    legend_entries,
    new_figure,
    plain_log_ticks,
    print_style,
    ring,
)
from figures.labels import NETWORK, block_label, man_label
from figures.results import Result, Results, require_one_way
from figures.unconverged import MEANING, is_unconverged

MOST_BESIDE = 4
"""Panels in a row."""


def draw_along_training(results: Results) -> Drawing:
    """Two runs that differ in MAN alone; one panel for the network, one per layer, all of the same logarithmic axis.

    From the eigenvalues that the run tracked (`flatlab train --track-eigs`), or those of its saved checkpoints; hollow
    marks are not converged.
    """
    runs = results.pair(_points, "eigenvalues of several rounds (of round-*.pt, or tracked)")
    require_one_way(made for run in runs for made in _settings(run))
    names = list(next(iter(_points(runs[0]).values())))
    lines = -(-len(names) // MOST_BESIDE)
    columns = -(-len(names) // lines)
    rows: list[dict[str, Any]] = []
    doubtful = False
    with print_style():
        figure, grid = new_figure(2 * COLUMN, 0.7 + 1.4 * lines, lines, columns, sharex=True, sharey=True)
        for axes, name in zip(grid.flat[: len(names)], names, strict=True):
            for run, colour in zip(runs, (WITHOUT_MAN, WITH_MAN), strict=True):
                points = {t: values[name] for t, values in _points(run).items() if name in values}
                label = man_label(run.config.man, [run.config.zeta])
                rounds, entries = list(points), list(points.values())
                axes.plot(rounds, [e["value"] for e in entries], "o-", color=colour, ms=2.5, lw=1, label=label)
                doubtful |= ring(axes, rounds, entries, colour)
                rows += [
                    {
                        "run": run.name,
                        "round": t,
                        "block": block_label(name),
                        "eigenvalue": e["value"],
                        "converged": not is_unconverged(e),
                    }
                    for t, e in points.items()
                ]
            axes.set(title=block_label(name), yscale="log")
        for place, axes in enumerate(grid.flat):
            if place >= len(names):
                axes.set_visible(False)
            elif place >= len(names) - columns:  # nothing below it
                axes.set_xlabel("round")
                axes.tick_params(labelbottom=True)
        plain_log_ticks(grid[0, 0].yaxis)
        for axes in grid[:, 0]:
            axes.set_ylabel("top eigenvalue")
        figure.suptitle("\n".join([runs[0].setting, *([MEANING] if doubtful else [])]), fontsize=8)
        figure.legend(*legend_entries(grid[0][0]), loc="outside lower center", ncols=2, frameon=False)
    return Drawing(figure, rows, results.provenance(runs))


def _points(run: Result) -> dict[int, dict[str, Mapping[str, Any]]]:
    """round: {the network or a layer: its top eigenvalue as it was saved}; empty with fewer than two rounds."""
    points = {
        t: {NETWORK: curvature["global"], **curvature.get("layers", {})} for t, curvature in _tracked(run).items()
    } or {
        t: {NETWORK: eigs["global"]["eigenvalues"][0]}
        | {layer["name"]: layer["eigenvalues"][0] for layer in eigs["layers"]}
        for t, eigs in _saved(run).items()
    }
    return points if len(points) > 1 else {}


def _settings(run: Result) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """How each of the points was made, with its name."""
    tracked = _tracked(run)
    for t, made in (tracked or _saved(run)).items():
        settings = {"samples": made.get("samples")} if tracked else made["settings"]
        yield f"the eigenvalue of round {t} of {run.name}", {**settings, "--track-eigs": "yes" if tracked else "no"}


def _tracked(run: Result) -> dict[int, Mapping[str, Any]]:
    return {record["round"]: record["curvature"] for record in run.records if "curvature" in record}


def _saved(run: Result) -> dict[int, Mapping[str, Any]]:
    saved = [*run.training, *([run.measured["eigs"]] if "eigs" in run.measured else [])]
    return {eigs["run"]["round"]: eigs for eigs in saved}
