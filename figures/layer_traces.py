"""Trace of the Hessian and of every layer's block, of several networks side by side."""

from collections.abc import Sequence

import numpy as np

from figures.captions import Saved, matrix_name, origin, setting, subject_labels, subject_name
from figures.drawing import COLUMN, Drawing, legend_entries, new_figure, print_style
from figures.grouped_bars import draw_groups
from figures.labels import NETWORK, block_label
from figures.unconverged import doubt, explained, is_unconverged


def draw_layer_traces(saved: Sequence[Saved]) -> Drawing:
    """Draw saved results of `flatlab trace`, standard errors as whiskers, a mark where the network's is too large."""
    names = list(dict.fromkeys(layer["name"] for one in saved for layer in one["layers"]))
    absent = {"value": np.nan, "standard_error": np.nan}
    marks = [doubt(one) for one in saved]
    rows = []
    for one in saved:
        traces = {NETWORK: one["trace"], **{layer["name"]: layer["trace"] for layer in one["layers"]}}
        rows += [
            {
                "subject": subject_name(one),
                "layer": block_label(name),
                **traces.get(name, absent),
                "converged": "" if name != NETWORK else not is_unconverged(one),
            }
            for name in [NETWORK, *names]
        ]
    of_subject = [rows[i : i + 1 + len(names)] for i in range(0, len(rows), 1 + len(names))]
    with print_style():
        figure, ((axes,),) = new_figure(1.4 * COLUMN, 2.3)
        draw_groups(
            axes,
            [block_label(name) for name in [NETWORK, *names]],
            [[row["value"] for row in own] for own in of_subject],
            subject_labels(saved),
            [[row["standard_error"] for row in own] for own in of_subject],
            [[mark, *("" for _ in names)] for mark in marks],  # no tolerance was asked of layers
        )
        axes.set(ylabel=f"trace of the {matrix_name(saved[0])}", title=explained(setting(saved[0]), marks))
        if len(saved) > 1:
            figure.legend(*legend_entries(axes), loc="outside lower center", ncols=3, frameon=False)
    return Drawing(figure, rows, origin(saved))
