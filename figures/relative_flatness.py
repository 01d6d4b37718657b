"""Relative flatness of every layer, which rescaling a ReLU network leaves as it is, of several networks."""

from collections.abc import Sequence

import numpy as np

from figures.captions import Saved, origin, setting, subject_labels, subject_name
from figures.drawing import COLUMN, Drawing, legend_entries, new_figure, print_style
from figures.grouped_bars import draw_groups
from figures.unconverged import doubt, explained


def draw_relative_flatness(saved: Sequence[Saved]) -> Drawing:
    """Draw saved results of `flatlab trace --flatness`: by the top eigenvalue left, by the trace right.

    >>> data = {"dataset": "digits", "split": "train", "samples": 500}
    >>> saved = {"checkpoint": "run/final.pt", "data": data, "versions": {"torch": "2.13.0"}}
    >>> layer = {"name": "fc1", "weight_norm2": 2.0, "by_eigenvalue": 16.0, "top": {"residual": 0.01}}
    >>> layer |= {"by_trace": 60.0, "trace": {"standard_error": 1.5}}
    >>> draw_relative_flatness([{**saved, "layers": [layer]}]).rows[0]["by_trace_error"]
    3.0
    """
    names = list(dict.fromkeys(layer["name"] for one in saved for layer in one["layers"]))
    rows = [
        {
            "subject": subject_name(one),
            "layer": layer["name"],
            "by_eigenvalue": layer["by_eigenvalue"],
            "by_eigenvalue_error": layer["weight_norm2"] * layer["top"]["residual"],
            "by_eigenvalue_mark": doubt(layer["top"]),
            "by_trace": layer["by_trace"],
            "by_trace_error": layer["weight_norm2"] * layer["trace"]["standard_error"],
            "by_trace_mark": doubt(one.get("trace", {})),  # the network's, whose probes are the layers' too
        }
        for one in saved
        for layer in one["layers"]
    ]
    found = {(row["subject"], row["layer"]): row for row in rows}
    with print_style():
        figure, (panels,) = new_figure(2 * COLUMN, 2.3, columns=2)
        for axes, key, label in zip(
            panels, ("by_eigenvalue", "by_trace"), (r"$|W|^2\ \lambda_{\max}$", r"$|W|^2$ trace"), strict=True
        ):
            values, errors = (
                [[found.get((subject_name(one), name), {}).get(column, np.nan) for name in names] for one in saved]
                for column in (key, f"{key}_error")
            )
            marks = [
                [found.get((subject_name(one), name), {}).get(f"{key}_mark", "") for name in names] for one in saved
            ]
            draw_groups(axes, names, values, subject_labels(saved), errors, marks)
            axes.set(ylabel=label)
        if len(saved) > 1:
            handles = legend_entries(panels[0])
            figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
        doubts = [row[f"{key}_mark"] for row in rows for key in ("by_eigenvalue", "by_trace")]
        figure.suptitle(explained(f"relative flatness of the weights; {setting(saved[0])}", doubts), fontsize=8)
    return Drawing(figure, rows, origin(saved))
