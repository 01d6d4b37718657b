"""The chain of bounds above every layer's top eigenvalue."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from figures.captions import setting, subject_labels, subject_name
from figures.drawing import COLUMN, PALETTE, Drawing, new_figure, print_style
from figures.labels import algorithm_label

LINKS = {
    "top": ("top eigenvalue", "o", PALETTE[0]),
    "a1": ("A1: sample by sample", "^", PALETTE[1]),
    "a2": ("A2: mean norm, worst curvature", "s", PALETTE[2]),
    "a3": ("A3: mean norm, later weights", "D", PALETTE[4]),
}


def draw_theory_chain(results: Sequence[dict[str, Any]]) -> Drawing:
    """Draw saved results of `flatlab verify CKPT...` (as in `<checkpoint>.verify.json`), one panel per checkpoint.

    For every layer its top eigenvalue and the bounds above it, on one logarithmic axis, at the lower ends of their
    intervals (the upper ends, open where nothing is excluded, are in the table). Layers for which the bounds are not
    claimed are left out.
    """
    rows: list[dict[str, Any]] = []
    with print_style():
        width = COLUMN if len(results) == 1 else 2 * COLUMN
        figure, panels = new_figure(width, 2.5, columns=len(results), sharey=True)
        for axes, result, title in zip(panels[0], results, _titles(results), strict=True):
            layers = [layer for layer in result["layers"] if layer["a1"] is not None]
            names = [layer["name"] for layer in layers]
            for shift, (link, (label, marker, colour)) in zip((-0.18, -0.06, 0.06, 0.18), LINKS.items(), strict=True):
                ends = [layer[link] or [np.nan, np.nan] for layer in layers]
                places = np.arange(len(layers)) + shift
                axes.plot(
                    places, [low for low, _ in ends], marker, color=colour, ms=5, mec="white", mew=0.4, label=label
                )
                rows += [
                    {"checkpoint": subject_name(result), "layer": name, "quantity": link, "low": low, "high": high}
                    for name, (low, high) in zip(names, ends, strict=True)
                ]
            axes.set_yscale("log")
            axes.set_xticks(range(len(layers)), names)
            axes.set_title(title)
            axes.grid(visible=False, axis="x")
        panels[0][0].set_ylabel(r"$\lambda_{\max}(H_{ll})$ and its bounds")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return Drawing(figure, rows, {**results[0]["versions"], "configuration": _configuration(results)})


def _titles(results: Sequence[dict[str, Any]]) -> list[str]:
    """What sets the runs apart in most studies; their folders too where that leaves some alike."""
    titles = [_title(result) for result in results]
    alike = len(set(titles)) < len(titles)
    labels = subject_labels(results) if alike else [""] * len(titles)
    return ["\n".join(filter(None, parts)) for parts in zip(labels, titles, strict=True)]


def _title(result: dict[str, Any]) -> str:
    if "run" not in result:
        return setting(result)
    config = result["run"]["config"]
    man = f"MAN, ζ = {config['zeta']:g}" if config["man"] else "without MAN"
    return f"{config['dataset']}, {algorithm_label(config['algorithm'])}, {man}, round {result['run']['round']}"


def _configuration(results: Sequence[dict[str, Any]]) -> str:
    return "; ".join(str(result.get("run", {}).get("config", subject_name(result))) for result in results)
