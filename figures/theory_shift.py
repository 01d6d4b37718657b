"""At a large coefficient MAN moves the curvature into the first layer; with the logits penalised too, less of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from figures.drawing import COLUMN, PALETTE, Drawing, new_figure, print_style

MARKERS = "osD^vP"


def draw_theory_shift(results: dict[str, Any]) -> Drawing:
    """Draw a saved result of `flatlab verify`: geometric means over seeds, with the seeds as small dots.

    Left and middle, top eigenvalues of the network and of its layers against the coefficient, without and with the
    logits penalised; right, the factors of the first layer's block relative to no MAN, logits free.
    """
    shifts = results["shift"]
    settings = list(dict.fromkeys(shift["zeta_logits"] for shift in shifts))
    rows: list[dict[str, Any]] = []
    with print_style():
        figure, (panels,) = new_figure(2 * COLUMN, 2.9, 1, 3)
        for axes, logits in zip(panels[:2], settings, strict=True):
            own = [shift for shift in shifts if shift["zeta_logits"] == logits]
            rows += _eigenvalues(axes, own)
            axes.set_title("MAN" if not logits else f"MAN, logits penalised ({logits:g})")
        panels[1].sharey(panels[0])
        panels[0].set_ylabel("top eigenvalue")
        _legend_below(panels[0], 2, -0.33)
        rows += _factors(panels[2], [shift for shift in shifts if not shift["zeta_logits"]])
        for axes in panels:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        note = {"network": "64-12-10-10 ReLU on digits", "seeds": str(len({s["seed"] for s in shifts}))}
    return Drawing(figure, rows, {**results["versions"], **note})


def _eigenvalues(axes: Axes, shifts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ["network", *(layer["name"] for layer in shifts[0]["layers"])]
    rows = []
    for i, name in enumerate(names):
        by_zeta = _by_zeta(shifts, [s["top"] if i == 0 else s["layers"][i - 1]["top"] for s in shifts])
        _line(axes, by_zeta, PALETTE[i], MARKERS[i], name)
        rows += _rows(by_zeta, f"top eigenvalue of {name}", shifts[0]["zeta_logits"])
    accuracies = _by_zeta(shifts, [shift["accuracy"] for shift in shifts])
    ticks = [f"{zeta:g}\n{100 * np.mean(values):.1f} %" for zeta, values in accuracies.items()]
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlabel("ζ, and test accuracy")
    rows += _rows(accuracies, "test accuracy", shifts[0]["zeta_logits"])
    return rows


def _factors(axes: Axes, shifts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    first = [shift["layers"][0] for shift in shifts]
    later = [sum(layer["weight_norm2"] for layer in shift["layers"][1:]) for shift in shifts]
    factors = {
        r"mean $\lambda_{\max}(B_n)$ after it": [layer["curvature"] for layer in first],
        r"$|W|^2$ of later layers": later,
        r"mean $|\tilde{a}|^2$ into it": [layer["input_norm2"] for layer in first],
    }
    rows = []
    for i, (name, values) in enumerate(factors.items()):
        by_zeta = _by_zeta(shifts, values)
        base = by_zeta[0.0]
        relative = {z: [a / b for a, b in zip(own, base, strict=True)] for z, own in by_zeta.items()}
        _line(axes, relative, PALETTE[4 + i], MARKERS[i], name)
        rows += _rows(relative, f"first layer, {name}, over that at 0", 0.0)
    axes.set_xticks(range(len(by_zeta)), [f"{zeta:g}" for zeta in by_zeta])
    axes.set_xlabel("ζ")
    axes.set_ylabel("relative to ζ = 0")
    axes.set_title(f"MAN: the factors of {first[0]['name']}")
    _legend_below(axes, 1, -0.24)
    return rows


def _line(axes: Axes, by_zeta: dict[float, list[float]], colour: Any, marker: str, label: str) -> None:
    means = [np.exp(np.mean(np.log(values))) for values in by_zeta.values()]
    axes.plot(range(len(means)), means, color=colour, marker=marker, ms=5, lw=1, mec="white", mew=0.4, label=label)
    for place, values in enumerate(by_zeta.values()):
        axes.plot([place] * len(values), values, ".", color=colour, ms=2, alpha=0.6)
    axes.set_yscale("log")
    axes.margins(x=0.12)


def _legend_below(axes: Axes, columns: int, y: float) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(-0.1, y), ncols=columns, frameon=False)


def _by_zeta(shifts: Sequence[dict[str, Any]], values: Sequence[float]) -> dict[float, list[float]]:
    grouped: dict[float, list[float]] = {}
    for shift, value in zip(shifts, values, strict=True):
        grouped.setdefault(shift["zeta"], []).append(value)
    return grouped


def _rows(by_zeta: dict[float, list[float]], quantity: str, logits: float) -> list[dict[str, Any]]:
    return [
        {"quantity": quantity, "zeta_logits": logits, "zeta": zeta, "seed": seed, "value": value}
        for zeta, values in by_zeta.items()
        for seed, value in enumerate(values)
    ]
