"""Every layer's top eigenvalue over MAN's coefficients."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from figures.drawing import COLUMN, Drawing, new_figure, print_style
from figures.errors import MissingResultsError

_PLAIN = (0.0, 0.0)
"""Coefficients of the logits and of MAN in a run without either."""


def draw_theory_heatmap(results: Mapping[str, Any]) -> Drawing:
    """Draw a saved result of `flatlab verify --study` (study.json): geometric means over seeds, after the last round.

    The numbers are eigenvalues; the colour is the ratio to the same layer without MAN, on a logarithmic scale: purple
    is flatter, orange is sharper. Runs in which the logits are penalised too are on the right. Of several groups of
    runs, the first; raises `MissingResultsError` where it has no run without MAN.
    """
    subjects = [s for s in results["subjects"] if s["group"] == results["subjects"][0]["group"]]
    last = [s for s in subjects if s["round"] == max(other["round"] for other in subjects)]
    settings = sorted({(s["zeta_logits"], s["zeta"]) for s in last})
    if _PLAIN not in settings:
        raise MissingResultsError("no run is without MAN and without a penalty of the logits, as a comparison needs")
    names = ["network", *(layer["name"] for layer in last[0]["measures"]["layers"])]
    tops = np.array([[_mean_top(last, setting, i) for setting in settings] for i in range(len(names))])
    ratios = np.log2(tops / tops[:, [settings.index(_PLAIN)]])
    rows = [
        {"layer": name, "zeta": zeta, "zeta_logits": logits, "top": tops[i, j], "ratio": 2 ** ratios[i, j]}
        for i, name in enumerate(names)
        for j, (logits, zeta) in enumerate(settings)
    ]
    with print_style():
        size = (0.9 + 0.42 * len(settings), 0.9 + 0.28 * len(names))
        figure, ((axes,),) = new_figure(max(COLUMN, size[0]), size[1])
        reach = np.abs(ratios).max(initial=1.0, where=np.isfinite(ratios))
        image = axes.imshow(ratios, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto")
        for i, j in np.ndindex(*tops.shape):
            dark = abs(ratios[i, j]) > 0.65 * reach
            axes.text(j, i, f"{tops[i, j]:.2g}", ha="center", va="center", fontsize=7, color="white" if dark else "0.1")
        axes.set_xticks(range(len(settings)), [f"{zeta:g}" for _, zeta in settings])
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=False)
        axes.set_xlabel(_axis_label(settings))
        groups = len({s["group"] for s in results["subjects"]})
        axes.set_title(f"The first of {groups} groups of runs" if groups > 1 else "")
        for j in range(1, len(settings)):
            if settings[j][0] != settings[j - 1][0]:
                axes.axvline(j - 0.5, color="0.2", lw=1.2)
        bar = figure.colorbar(image, ax=axes, label="relative to no penalty")
        powers = np.arange(-int(reach), int(reach) + 1, max(1, int(reach) // 2))
        bar.set_ticks(list(powers), labels=[f"×{2**power}" if power >= 0 else f"×1/{2**-power}" for power in powers])
    return Drawing(figure, rows, {**results["versions"], "configuration": subjects[0]["group"]})


def _mean_top(subjects: Sequence[dict[str, Any]], setting: tuple[float, float], row: int) -> float:
    """The geometric mean over the seeds of one setting: of the network in row 0, of a layer in the others.

    Of those that are positive; nan where none is.
    """
    own = [s["measures"] for s in subjects if (s["zeta_logits"], s["zeta"]) == setting]
    values = [m["top"] if row == 0 else m["layers"][row - 1]["top"] for m in own]
    positive = [value for value in values if value is not None and value > 0]
    return float(np.exp(np.mean(np.log(positive)))) if positive else math.nan


def _axis_label(settings: Sequence[tuple[float, float]]) -> str:
    logits = [f"{coefficient:g}" for coefficient in dict.fromkeys(logits for logits, _ in settings) if coefficient]
    return "ζ" + (f" (right of the line: logits penalised too, {', '.join(logits)})" if logits else "")
