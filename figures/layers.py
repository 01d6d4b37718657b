"""Top eigenvalue and activation norm of every layer, without and with MAN, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from figures.saving import COLUMN, WITH_MAN, WITHOUT_MAN, paper_style, save_figure


def draw_layers(without: dict[str, Any], with_man: dict[str, Any], path: Path) -> list[Path]:
    """Draw two saved results of `flatlab eigs` (as in `<checkpoint>.eigs.json`) of networks with the same layers.

    Left, the top eigenvalue of the whole Hessian and of each layer's block with its residual as error bar; right, the
    mean squared norm of the activation that leaves each layer. Returns the written paths.
    """
    names = [layer["name"] for layer in without["layers"]]
    eigenvalues = [
        [_top(result["global"]), *(_top(layer) for layer in result["layers"])] for result in (without, with_man)
    ]
    norms = [[layer["output_norm2"] or np.nan for layer in result["layers"]] for result in (without, with_man)]
    with paper_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(2 * COLUMN, 2.2), constrained_layout=True)
        _bars(
            left,
            ["network", *names],
            [[value for value, _ in row] for row in eigenvalues],
            [[r for _, r in row] for row in eigenvalues],
        )
        left.set(ylabel="top Hessian eigenvalue")
        _bars(right, [*names[:-1], f"{names[-1]} (logits)"], norms)
        right.set(ylabel=r"mean $|a|^2$ leaving the layer")
        right.legend(frameon=True)
        config = with_man["run"]["config"]
        figure.suptitle(
            f"{config['dataset']}, {config['algorithm']}: {_label(without)} and {_label(with_man)}", fontsize=8
        )
        rows = [
            {
                "checkpoint": result["checkpoint"],
                "layer": name,
                "eigenvalue": value,
                "residual": residual,
                "output_norm2": norm,
            }
            for result, values, activations in zip((without, with_man), eigenvalues, norms, strict=True)
            for name, (value, residual), norm in zip(["network", *names], values, [None, *activations], strict=True)
        ]
        written = save_figure(figure, path, rows, with_man["versions"])
        plt.close(figure)
    return written


def _bars(
    axes: Axes,
    names: Sequence[str],
    heights: Sequence[Sequence[float]],
    errors: Sequence[Sequence[float]] | None = None,
) -> None:
    place = np.arange(len(names))
    for side, (height, colour, label) in enumerate(
        zip(heights, (WITHOUT_MAN, WITH_MAN), ("without MAN", "with MAN"), strict=True)
    ):
        yerr = errors[side] if errors else None
        bars = axes.bar(place + 0.4 * (side - 0.5), height, 0.38, color=colour, label=label, yerr=yerr)
        if len(names) < 7:
            axes.bar_label(bars, fmt="%.3g", fontsize=6)
    axes.set_xticks(place, names, rotation=0 if len(names) < 7 else 60)
    axes.margins(y=0.15)
    axes.grid(visible=False, axis="x")


def _top(entry: dict[str, Any]) -> tuple[float, float]:
    first = entry["eigenvalues"][0]
    return first["value"], first["residual"]


def _label(result: dict[str, Any]) -> str:
    accuracy = result["run"]["metrics"]["test_accuracy"]
    config = result["run"]["config"]
    name = f"MAN (zeta {config['zeta']:g})" if config["man"] else "no MAN"
    return f"{name} {accuracy:.1%}"
