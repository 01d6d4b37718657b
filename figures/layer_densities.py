"""Density of the eigenvalues of the network and of every layer's block, a panel each, of several networks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from figures.captions import Saved, matrix_name, origin, setting, subject_labels, subject_name
from figures.drawing import COLUMN, Drawing, colours, legend_entries, new_figure, print_style
from figures.labels import NETWORK, block_label

_ACROSS = 3  # panels


def draw_layer_densities(saved: Sequence[Saved]) -> Drawing:
    """Draw saved results of `flatlab density --layers`; every panel has axes of its own.

    >>> curve = {"grid": [0.0, 1.0], "density": [0.9, 0.1], "standard_error": [0.01, 0.01], "size": 9, "sigma": 0.1}
    >>> data = {"dataset": "digits", "split": "train", "samples": 500}
    >>> saved = {"checkpoint": "run/final.pt", "data": data, "versions": {"torch": "2.13.0"}}
    >>> drawing = draw_layer_densities([{**saved, **curve, "layers": [{"name": "fc1", **curve}]}])
    >>> [row["layer"] for row in drawing.rows]
    ['network', 'network', 'fc1', 'fc1']
    """
    blocks = [_blocks(one) for one in saved]
    names = list(dict.fromkeys(name for own in blocks for name in own))
    across = min(_ACROSS, len(names))
    down = math.ceil(len(names) / across)
    rows: list[dict[str, Any]] = []
    with print_style():
        figure, panels = new_figure(0.72 * COLUMN * across, 1.6 * down + 0.4, down, across)
        for axes, name in zip(panels.flat[: len(names)], names, strict=True):
            floor, highest = np.inf, 0.0
            for one, own, colour, label in zip(saved, blocks, colours(len(saved)), subject_labels(saved), strict=True):
                if name not in own:
                    continue
                block = own[name]
                density = np.array(block["density"])
                axes.plot(block["grid"], density, color=colour, lw=1.0, label=label)
                floor, highest = min(floor, _single(block) / 10), max(highest, density.max())
                rows += [
                    {
                        "subject": subject_name(one),
                        "layer": block_label(name),
                        "eigenvalue": x,
                        "density": y,
                        "standard_error": e,
                    }
                    for x, y, e in zip(block["grid"], block["density"], block["standard_error"], strict=True)
                ]
            axes.set(yscale="log", title=block_label(name))
            axes.set_ylim(floor, 3 * highest)
            axes.locator_params(axis="x", nbins=4)
        for axes in panels.flat[len(names) :]:
            axes.set_axis_off()
        if len(saved) > 1:
            handles = legend_entries(panels.flat[0])
            figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
        figure.supxlabel(f"eigenvalue of the {matrix_name(saved[0])}, or of a layer's block", fontsize=8)
        figure.supylabel("density", fontsize=8)
        figure.suptitle(setting(saved[0]), fontsize=8)
    return Drawing(figure, rows, origin(saved))


def _blocks(saved: Saved) -> dict[str, Mapping[str, Any]]:
    return {NETWORK: saved, **{layer["name"]: layer for layer in saved["layers"]}}


def _single(block: Mapping[str, Any]) -> float:
    """How high a single eigenvalue would stand."""
    return float(1 / (block["size"] * block["sigma"] * np.sqrt(2 * np.pi)))
