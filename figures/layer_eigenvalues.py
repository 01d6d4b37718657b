"""Top eigenvalue and activation norm of every layer, of several networks side by side."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from figures.captions import Saved, matrix_name, origin, setting, subject_labels, subject_name
from figures.drawing import COLUMN, Drawing, legend_entries, new_figure, print_style
from figures.grouped_bars import draw_groups
from figures.labels import NETWORK, block_label
from figures.unconverged import doubt, explained


def draw_layers(saved: Sequence[Saved]) -> Drawing:
    """Draw saved results of `flatlab eigs` (as in `<checkpoint>.eigs.json`).

    >>> top = {"eigenvalues": [{"value": 8.0, "residual": 0.01}]}
    >>> data = {"dataset": "digits", "split": "train", "samples": 500}
    >>> saved = {"checkpoint": "run/final.pt", "data": data, "versions": {"torch": "2.13.0"}}
    >>> layer = {"name": "fc1", "output_norm2": 3.0, **top}
    >>> [row["layer"] for row in draw_layers([{**saved, "global": top, "layers": [layer]}]).rows]
    ['network', 'fc1']
    """
    names = list(dict.fromkeys(layer["name"] for one in saved for layer in one["layers"]))
    labels = subject_labels(saved)
    tops = [_by_layer(one, names) for one in saved]
    with print_style():
        width = 2 * COLUMN if names else COLUMN
        figure, panels = new_figure(width, 2.6, columns=2 if names else 1)
        left = panels[0][0]
        blocks = [block_label(name) for name in (NETWORK, *names)]
        values, residuals, norms = ([[entry[key] for entry in top] for top in tops] for key in (0, 1, 2))
        marks = [_marks(one, names) for one in saved]
        draw_groups(left, blocks, values, labels, residuals, marks)
        end = "smallest" if saved[0].get("settings", {}).get("which") == "smallest" else "top"
        left.set(ylabel=f"{end} eigenvalue of the {matrix_name(saved[0])}")
        if names:
            draw_groups(panels[0][1], blocks[1:], [row[1:] for row in norms], labels)
            panels[0][1].set(ylabel=r"mean $|a|^2$ leaving it")
        if len(saved) > 1:
            figure.legend(*legend_entries(left), loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(explained(setting(saved[0]), chain.from_iterable(marks)), fontsize=8)
        rows = [
            {
                "subject": subject_name(one),
                "layer": block,
                "eigenvalue": value,
                "residual": residual,
                "converged": not mark,
                "norm2": norm,
            }
            for one, top, own in zip(saved, tops, marks, strict=True)
            for block, (value, residual, norm), mark in zip(blocks, top, own, strict=True)
        ]
    return Drawing(figure, rows, origin(saved))


def _by_layer(saved: Saved, names: Sequence[str]) -> list[tuple[float, float, float]]:
    """Eigenvalue, residual and norm of the network, then of every layer; nan for what there is not."""
    found = []
    for entry in _entries(saved, names):
        if entry is None:
            found.append((np.nan, np.nan, np.nan))
            continue
        top, norm = entry["eigenvalues"][0], entry.get("output_norm2")
        found.append((top["value"], top["residual"], np.nan if norm is None else norm))
    return found


def _marks(saved: Saved, names: Sequence[str]) -> list[str]:
    """Of the same eigenvalues, those that did not converge."""
    return ["" if entry is None else doubt(entry["eigenvalues"][0]) for entry in _entries(saved, names)]


def _entries(saved: Saved, names: Sequence[str]) -> list[Any]:
    """What was saved of the network and of every layer; None where there is none."""
    layers = {layer["name"]: layer for layer in saved["layers"]}
    return [saved["global"], *(layers.get(name) for name in names)]
