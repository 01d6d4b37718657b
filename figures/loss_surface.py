"""The loss around trained models, on the same scale: two runs without and with MAN, or any networks."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline

from figures.captions import Saved, origin, subject_labels, subject_name
from figures.drawing import COLUMN, Drawing, new_figure, plain_log_ticks, print_style
from figures.labels import algorithm_label, man_label
from figures.results import Results, require_alike

LEVELS = 16
MOST_BESIDE = 3
"""Maps in a row."""

Vector = NDArray[np.float64]

_CUBIC, _FINER = 4, 8  # points that a cubic spline needs, and how many times finer the map is drawn


def draw_loss_surface(results: Results) -> Drawing:
    """Two runs that differ in MAN alone.

    Both use the same random directions, each filter of which has the norm of the model's own filter.
    """
    runs = results.pair(lambda run: run.measured.get("surface"), "final.surface.json")
    require_alike(runs, "surface")
    saved = [run.measured["surface"] for run in runs]
    titles = [
        f"{algorithm_label(run.config.algorithm)}, {man_label(run.config.man, [run.config.zeta])}" for run in runs
    ]
    return _plot(saved, [run.name for run in runs], titles, "training loss", results.provenance(runs))


def draw_loss_surfaces(saved: Sequence[Saved]) -> Drawing:
    """Saved results of `flatlab surface` in two dimensions.

    >>> data = {"dataset": "digits", "split": "train", "samples": 500}
    >>> saved = {"checkpoint": "run/final.pt", "data": data, "versions": {"torch": "2.13.0"}}
    >>> losses = [[0.3, 0.2], [0.2, 0.1]]
    >>> draw_loss_surfaces([{**saved, "a": [-1.0, 1.0], "b": [-1.0, 1.0], "losses": losses}]).rows[0]
    {'run': 'run/final.pt', 'a': -1.0, 'b': -1.0, 'loss': 0.3}
    """
    names = [subject_name(one) for one in saved]
    return _plot(saved, names, subject_labels(saved), loss_label(saved[0]), origin(saved))


def loss_label(saved: Saved) -> str:
    """The loss, as the title of an axis."""
    return "training loss" if saved["data"]["split"] == "train" else "loss"


def _plot(
    saved: Sequence[Saved],
    names: Sequence[str],
    titles: Sequence[str],
    label: str,
    provenance: Mapping[str, str],
) -> Drawing:
    """Contour maps of one logarithmic colour scale; the cross marks the model."""
    losses = [np.array(one["losses"]) for one in saved]
    levels = np.geomspace(min(loss.min() for loss in losses), max(loss.max() for loss in losses), LEVELS)
    rows = [
        {"run": name, "a": a, "b": b, "loss": one["losses"][i][j]}
        for name, one in zip(names, saved, strict=True)
        for i, a in enumerate(one["a"])
        for j, b in enumerate(one["b"])
    ]
    beside = min(len(saved), MOST_BESIDE)
    lines = -(-len(saved) // beside)
    with print_style():
        width = min(2.0, 0.4 + 0.8 * beside) * COLUMN
        figure, grid = new_figure(width, 2.9 * lines, lines, beside, sharex=True, sharey=True)
        for axes in grid.flat[len(saved) :]:
            axes.set_visible(False)
        norm = LogNorm(levels[0], levels[-1])
        for axes, one, title, loss in zip(grid.flat[: len(saved)], saved, titles, losses, strict=True):
            a, b, smooth = _smooth(np.array(one["a"]), np.array(one["b"]), loss)
            filled = axes.contourf(a, b, smooth.T, levels, norm=norm, cmap="cividis", extend="both")
            axes.contour(a, b, smooth.T, levels, colors="white", linewidths=0.3)
            axes.plot(0, 0, "+", color="white", ms=6)
            axes.set(
                title=title,
                xlabel="first direction",
                aspect="equal",
                xticks=np.linspace(min(one["a"]), max(one["a"]), 5),
                yticks=np.linspace(min(one["b"]), max(one["b"]), 5),
            )
            axes.grid(visible=False)
        for line in grid:
            line[0].set_ylabel("second direction")
        bar = figure.colorbar(filled, ax=grid, label=label)
        plain_log_ticks(bar.ax.yaxis)
        bar.ax.minorticks_off()
    return Drawing(figure, rows, provenance)


def _smooth(a: Vector, b: Vector, losses: Vector) -> tuple[Vector, Vector, Vector]:
    """The logarithm of the losses between the points that were measured, by cubic splines, for the eye alone."""
    if min(len(a), len(b)) < _CUBIC:
        return a, b, losses
    fine_a, fine_b = (np.linspace(x[0], x[-1], _FINER * len(x)) for x in (a, b))
    return fine_a, fine_b, np.exp(RectBivariateSpline(a, b, np.log(losses))(fine_a, fine_b))
