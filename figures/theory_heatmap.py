"""Every layer's top eigenvalue over MAN's coefficients."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from figures.drawing import COLUMN, Drawing, new_figure, print_style
from figures.errors import MissingResultsError
from figures.shown import marked
from figures.unconverged import explained, worst

Setting = tuple[float, float, tuple[str, ...]]
"""Coefficients of the logits and of MAN, and the layers that it is confined to."""

_PLAIN: Setting = (0.0, 0.0, ())


def draw_theory_heatmap(results: Mapping[str, Any]) -> Drawing:
    """Draw a saved result of `flatlab verify --study` (study.json): geometric means over seeds, after the last round.

    The numbers are eigenvalues; the colour is the ratio to the same layer without MAN, over the seeds that have both,
    on a logarithmic scale: purple is flatter, orange is sharper. Runs in which the logits are penalised too are on the
    right. Of several groups of runs, the first; raises `MissingResultsError` where it has no run without MAN.
    """
    subjects = [s for s in results["subjects"] if s["group"] == results["subjects"][0]["group"]]
    last = [s for s in subjects if s["round"] == max(other["round"] for other in subjects)]
    settings = sorted({_setting(s) for s in last})
    if _PLAIN not in settings:
        raise MissingResultsError("no run is without MAN and without a penalty of the logits, as a comparison needs")
    names = ["network", *(layer["name"] for layer in last[0]["measures"]["layers"])]
    of = {setting: [s for s in last if _setting(s) == setting] for setting in settings}
    columns = [[_logarithms(own, i) for own in of.values()] for i in range(len(names))]
    tops = np.array([[np.exp(_mean(found)) for found in line] for line in columns])
    ratios = np.array([[_change(found, line[settings.index(_PLAIN)]) for found in line] for line in columns])
    marks = [[worst(_doubt(s, name) for s in own) for own in of.values()] for name in names]
    rows = [
        {
            "layer": name,
            "zeta": zeta,
            "zeta_logits": logits,
            "man_layers": " ".join(parts),
            "top": tops[i, j],
            "ratio": 2 ** ratios[i, j],
            "seeds": len(columns[i][j]),
            "doubt": marks[i][j],
        }
        for i, name in enumerate(names)
        for j, (logits, zeta, parts) in enumerate(settings)
    ]
    with print_style():
        size = (0.9 + 0.42 * len(settings), 0.9 + 0.28 * len(names))
        figure, ((axes,),) = new_figure(max(COLUMN, size[0]), size[1])
        reach = np.abs(ratios).max(initial=1.0, where=np.isfinite(ratios))
        image = axes.imshow(ratios, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto")
        for i, j in np.ndindex(*tops.shape):
            dark = abs(ratios[i, j]) > 0.65 * reach
            number = marked(f"{tops[i, j]:.2g}", marks[i][j])
            axes.text(j, i, number, ha="center", va="center", fontsize=7, color="white" if dark else "0.1")
        axes.set_xticks(range(len(settings)), ["\n".join([f"{zeta:g}", *parts]) for _, zeta, parts in settings])
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=False)
        axes.set_xlabel(_axis_label(settings))
        groups = len({s["group"] for s in results["subjects"]})
        title = f"The first of {groups} groups of runs" if groups > 1 else ""
        axes.set_title(explained(title, {mark for line in marks for mark in line}))
        for j in range(1, len(settings)):
            if settings[j][0] != settings[j - 1][0]:
                axes.axvline(j - 0.5, color="0.2", lw=1.2)
        bar = figure.colorbar(image, ax=axes, label="relative to no penalty")
        powers = np.arange(-int(reach), int(reach) + 1, max(1, int(reach) // 2))
        bar.set_ticks(list(powers), labels=[f"×{2**power}" if power >= 0 else f"×1/{2**-power}" for power in powers])
    return Drawing(figure, rows, {**results["versions"], "configuration": subjects[0]["group"]})


def _logarithms(subjects: Sequence[dict[str, Any]], row: int) -> dict[int, float]:
    """By seed the logarithm of an eigenvalue that is positive: of the network in row 0, of a layer in the others."""
    measures = {s["seed"]: s["measures"] for s in subjects}
    values = {seed: m["top"] if row == 0 else m["layers"][row - 1]["top"] for seed, m in measures.items()}
    return {seed: math.log(value) for seed, value in values.items() if value is not None and value > 0}


def _mean(logarithms: Mapping[int, float]) -> float:
    return float(np.mean(list(logarithms.values()))) if logarithms else math.nan


def _change(own: Mapping[int, float], without: Mapping[int, float]) -> float:
    """The logarithm to base 2 of the mean ratio, over the seeds that have both."""
    return _mean({seed: (own[seed] - without[seed]) / math.log(2) for seed in own.keys() & without.keys()})


def _doubt(subject: Mapping[str, Any], name: str) -> str:
    doubts: Mapping[str, str] = subject["measures"].get("doubts", {})
    return doubts.get("λmax of the network" if name == "network" else f"λmax of {name}", "")


def _setting(subject: Mapping[str, Any]) -> Setting:
    return subject["zeta_logits"], subject["zeta"], tuple(subject.get("man_layers", ()))


def _axis_label(settings: Sequence[Setting]) -> str:
    logits = [f"{coefficient:g}" for coefficient in dict.fromkeys(logits for logits, *_ in settings) if coefficient]
    return "ζ" + (f" (right of the line: logits penalised too, {', '.join(logits)})" if logits else "")
