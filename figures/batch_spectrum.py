"""How the top eigenvalues vary over mini-batches: the "Hessian max eigenvalue spectrum"."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from figures.captions import Saved, origin, setting, subject_labels, subject_name
from figures.drawing import COLUMN, Drawing, colours, legend_entries, new_figure, print_style
from figures.unconverged import is_unconverged

_FEW = 20
"""Eigenvalues that are too few for a rule."""

_MOST_BINS = 60


def draw_batch_spectrum(saved: Sequence[Saved]) -> Drawing:
    """Histograms of saved results of `flatlab eigs --per-batch`, all top k eigenvalues of all batches together.

    The dashed lines are the eigenvalues of the mean loss, which the batches' own exceed on average.

    >>> whole = {"eigenvalues": [{"value": 8.0}]}
    >>> data = {"dataset": "digits", "split": "train", "samples": 500}
    >>> saved = {"checkpoint": "run/final.pt", "data": data, "versions": {"torch": "2.13.0"}}
    >>> batches = {"values": [[9.0], [8.5]], "residuals": [[0.01], [0.02]], "batch_size": 250}
    >>> [row["eigenvalue"] for row in draw_batch_spectrum([{**saved, "global": whole, **batches}]).rows]
    [9.0, 8.5]

    The title says how many did not converge.
    """
    everything = np.concatenate([np.ravel(one["values"]) for one in saved])
    edges = np.histogram_bin_edges(everything, bins=_bins(everything)).tolist()
    rows = [
        {
            "subject": subject_name(one),
            "batch": batch,
            "index": index + 1,
            "eigenvalue": value,
            "residual": residual,
            "converged": converged,
        }
        for one in saved
        for batch, pairs in enumerate(map(zip, one["values"], one["residuals"], _converged(one)))
        for index, (value, residual, converged) in enumerate(pairs)
    ]
    doubtful = sum(row["converged"] is False for row in rows) + sum(
        is_unconverged(whole) for one in saved for whole in one["global"]["eigenvalues"]
    )
    count = len(saved[0]["values"][0])
    with print_style():
        figure, ((axes,),) = new_figure(COLUMN, 2.5)
        for one, colour, label in zip(saved, colours(len(saved)), subject_labels(saved), strict=True):
            values = np.ravel(one["values"])
            axes.hist(values, edges, color=colour, alpha=0.35, label=label)
            axes.hist(values, edges, color=colour, histtype="step", lw=1)
            for whole in one["global"]["eigenvalues"]:
                axes.axvline(whole["value"], color=colour, ls="--", lw=1)
        which = "top eigenvalue" if count == 1 else f"top {count} eigenvalues"
        axes.set(
            xlabel=f"{which} of a mini-batch's Hessian",
            ylabel="batches" if count == 1 else "eigenvalues",
            title=f"{setting(saved[0])}, batches of {saved[0]['batch_size']}"
            + (f"\n{doubtful} not converged" if doubtful else ""),
        )
        axes.grid(visible=False, axis="x")
        axes.plot([], [], "--", color="0.35", lw=1, label="of the mean loss")
        axes.legend(*legend_entries(axes), frameon=True)
    return Drawing(figure, rows, origin(saved))


def _converged(one: Saved) -> list[list[bool | None]]:
    """Whether each value did; None where a file of before says only that not all did."""
    known: list[list[bool | None]] | None = one.get("each_converged")
    return known or [[True if one.get("converged", True) else None] * len(values) for values in one["values"]]


def _bins(values: NDArray[np.float64]) -> int:
    """As many as Freedman and Diaconis (1981) have, where most batches are not alike and one far away."""
    if len(values) <= _FEW:
        return 8
    width = 2 * float(np.subtract(*np.percentile(values, [75, 25]))) / np.cbrt(len(values))
    return max(1, math.ceil(np.ptp(values) / width)) if width > np.ptp(values) / _MOST_BINS else _MOST_BINS
