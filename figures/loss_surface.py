"""The loss around trained models, on the same scale: two runs without and with MAN, or any networks."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline

from figures.captions import Saved, origin, subject_labels, subject_name
from figures.drawing import COLUMN, Drawing, new_figure, plain_log_ticks, print_style
from figures.errors import MissingResultsError
from figures.labels import algorithm_label, man_label
from figures.results import Results, require_alike

LEVELS = 16
MOST_BESIDE = 3
"""Maps in a row."""

Vector = NDArray[np.float64]

_CUBIC, _FINER = 4, 8  # points that a cubic spline needs, and how many times finer the map is drawn
_FLAT = 1e-9  # share of the loss below which its differences are rounding


def draw_loss_surface(results: Results) -> Drawing:
    """Two runs that differ in MAN alone.

    Both use the same random directions, each filter of which has the norm of the model's own filter.
    """
    runs = results.pair(lambda run: _is_map(run.measured.get("surface")), "final.surface.json of a plane")
    require_alike(runs, "surface")
    saved = [run.measured["surface"] for run in runs]
    titles = [
        f"{algorithm_label(run.config.algorithm)}, {man_label(run.config.man, [run.config.zeta])}" for run in runs
    ]
    return _plot(saved, [run.name for run in runs], titles, "training loss", results.provenance(runs))


def _is_map(saved: Saved | None) -> bool:
    """Whether it is of a plane in random directions: eigenvectors are each model's own, and of another length."""
    return saved is not None and len(saved["b"]) > 1 and "eigenvalues" not in saved


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
    """Contour maps of one colour scale, logarithmic where losses have logarithms; the cross marks the model.

    Raises `MissingResultsError` where no loss is finite; points whose loss is not are left blank.
    """
    losses = [np.array(one["losses"], dtype=np.float64) for one in saved]  # NaN where one is null
    levels = _levels(np.concatenate([loss[np.isfinite(loss)] for loss in losses]))
    logarithmic = levels[0] > 0
    rows = [
        {"run": name, "a": a, "b": b, "loss": float(loss[i, j]) if np.isfinite(loss[i, j]) else None}
        for name, one, loss in zip(names, saved, losses, strict=True)
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
        norm = (LogNorm if logarithmic else Normalize)(levels[0], levels[-1])
        for axes, one, title, loss in zip(grid.flat[: len(saved)], saved, titles, losses, strict=True):
            a, b, smooth = _smooth(np.array(one["a"]), np.array(one["b"]), loss, logarithmic)
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
        if logarithmic:
            plain_log_ticks(bar.ax.yaxis)
        bar.ax.minorticks_off()
    return Drawing(figure, rows, provenance)


def _levels(losses: Vector) -> Vector:
    """Ascending levels from the lowest to the highest of the finite `losses` (n,), by ratio where all are positive."""
    if not len(losses):
        raise MissingResultsError("no loss around the model is a finite number")
    low, high = losses.min(), losses.max()
    if high - low <= _FLAT * abs(high):  # a plain: one colour
        room = abs(low) / 100 or 1.0
        low, high = low - room, high + room
    return np.geomspace(low, high, LEVELS) if low > 0 else np.linspace(low, high, LEVELS)


def _smooth(a: Vector, b: Vector, losses: Vector, logarithmic: bool) -> tuple[Vector, Vector, Vector]:
    """The losses, or their logarithms, between the points that were measured, by cubic splines, for the eye alone."""
    if min(len(a), len(b)) < _CUBIC or not np.isfinite(losses).all():
        return a, b, np.ma.masked_invalid(losses)
    fine_a, fine_b = (np.linspace(x[0], x[-1], _FINER * len(x)) for x in (a, b))
    if not logarithmic:
        return fine_a, fine_b, RectBivariateSpline(a, b, losses)(fine_a, fine_b)
    return fine_a, fine_b, np.exp(RectBivariateSpline(a, b, np.log(losses))(fine_a, fine_b))
