"""Density of the Hessian's eigenvalues, of two runs without and with MAN or of any networks."""

from collections.abc import Mapping, Sequence

import numpy as np

from figures.captions import Saved, matrix_name, origin, setting, subject_labels, subject_name
from figures.drawing import COLUMN, Drawing, colours, legend_entries, new_figure, print_style
from figures.labels import man_label
from figures.results import Results, require_alike


def draw_spectral_density(results: Results) -> Drawing:
    """Two runs that differ in MAN alone."""
    runs = results.pair(lambda run: run.measured.get("density"), "final.density.json")
    require_alike(runs, "density")
    saved = [run.measured["density"] for run in runs]
    labels = [man_label(run.config.man, [run.config.zeta]) for run in runs]
    return _plot(saved, [run.name for run in runs], labels, runs[0].setting, results.provenance(runs))


def draw_densities(saved: Sequence[Saved]) -> Drawing:
    """Saved results of `flatlab density`.

    >>> curve = {"grid": [0.0, 1.0], "density": [0.9, 0.1], "standard_error": [0.01, 0.01], "size": 9, "sigma": 0.1}
    >>> data = {"dataset": "digits", "split": "train", "samples": 500}
    >>> saved = {"checkpoint": "run/final.pt", "data": data, "versions": {"torch": "2.13.0"}}
    >>> [row["density"] for row in draw_densities([{**saved, **curve}]).rows]
    [0.9, 0.1]
    """
    names = [subject_name(one) for one in saved]
    return _plot(saved, names, subject_labels(saved), setting(saved[0]), origin(saved))


def _plot(
    saved: Sequence[Saved],
    names: Sequence[str],
    labels: Sequence[str],
    title: str,
    provenance: Mapping[str, str],
) -> Drawing:
    """On a logarithmic axis that ends where a single eigenvalue would stand."""
    rows, floor, highest = [], np.inf, 0.0
    with print_style():
        figure, ((axes,),) = new_figure(COLUMN, 2.2)
        for one, name, colour, label in zip(saved, names, colours(len(saved)), labels, strict=True):
            density = np.array(one["density"])
            axes.plot(one["grid"], density, color=colour, lw=1.2, label=label)
            single = 1 / (one["size"] * one["sigma"] * np.sqrt(2 * np.pi))
            floor, highest = min(floor, single / 10), max(highest, density.max())
            rows += [
                {"run": name, "eigenvalue": x, "density": y, "standard_error": e}
                for x, y, e in zip(one["grid"], one["density"], one["standard_error"], strict=True)
            ]
        axes.set(yscale="log", xlabel=f"eigenvalue of the {matrix_name(saved[0])}", ylabel="density")
        axes.set_ylim(floor, 3 * highest)
        axes.set_title(title)
        if len(saved) > 1:
            axes.legend(*legend_entries(axes), frameon=True)
    return Drawing(figure, rows, provenance)
