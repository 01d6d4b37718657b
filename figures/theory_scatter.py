"""The norm of the activations entering a layer against the layer's top eigenvalue, over coefficients and seeds."""

from itertools import cycle
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from figures.drawing import COLUMN, Drawing, colours, new_figure, print_style, put_mark, say_left_out
from figures.unconverged import explained

MARKERS = "osD^vP<>"


def draw_theory_scatter(results: dict[str, Any]) -> Drawing:
    """Draw a saved result of `flatlab verify --study` (study.json): one mark per layer and run, after the last round.

    Colour is the coefficient, shape the layer, whatever group of runs it is of; hollow marks have the logits penalised
    too. Above them is what eigenvalues that did not converge are marked with. A title says how many marks have no
    place on logarithmic axes.
    """
    subjects = results["subjects"]
    last = [s for s in subjects if s["round"] == max(o["round"] for o in subjects if o["group"] == s["group"])]
    found = [
        {
            "checkpoint": subject["checkpoint"],
            "zeta": subject["zeta"],
            "zeta_logits": subject["zeta_logits"],
            "seed": subject["seed"],
            "layer": layer["name"],
            "input_norm2": layer["input_norm2"],
            "top": layer["top"],
            "doubt": subject["measures"].get("doubts", {}).get(f"λmax of {layer['name']}", ""),
        }
        for subject in last
        for layer in subject["measures"]["layers"]
    ]
    rows = [row for row in found if row["input_norm2"] and row["top"] > 0]
    zetas, layers = sorted({row["zeta"] for row in rows}), list(dict.fromkeys(row["layer"] for row in rows))
    colour_of = dict(zip(zetas, colours(len(zetas)), strict=True))
    markers = dict(zip(layers, cycle(MARKERS)))
    with print_style():
        figure, ((axes,),) = new_figure(COLUMN, 2.8)
        for row in rows:
            colour = colour_of[row["zeta"]]
            face, edge = ("none", colour) if row["zeta_logits"] else (colour, "white")
            axes.plot(row["input_norm2"], row["top"], markers[row["layer"]], mfc=face, mec=edge, ms=4, mew=0.6)
            put_mark(axes, row["input_norm2"], row["top"], row["doubt"])
        axes.set(xscale="log", yscale="log")
        groups = list(dict.fromkeys(subject["group"] for subject in last))
        title = f"{len(groups)} groups of runs" if len(groups) > 1 else ""
        axes.set_title(explained(title, {row["doubt"] for row in rows}), fontsize=7)
        say_left_out(axes, len(rows), len(found))
        axes.set(xlabel=r"mean $|a|^2$ entering the layer", ylabel="top eigenvalue of the layer's block")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        handles = [
            Line2D([], [], marker="o", ls="", ms=4, color=colour_of[zeta], label=f"ζ = {zeta:g}") for zeta in zetas
        ]
        handles += [Line2D([], [], marker=markers[name], ls="", ms=4, color="0.4", label=name) for name in layers]
        if any(row["zeta_logits"] for row in rows):
            handles.append(Line2D([], [], marker="o", ls="", ms=4, mfc="none", mec="0.4", label="logits too"))
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return Drawing(figure, rows, {**results["versions"], "configuration": "; ".join(groups)})
