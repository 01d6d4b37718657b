"""Top eigenvalue of every layer's Hessian block against the norm of the activations that enter the layer."""

from itertools import cycle
from typing import Any

from matplotlib.lines import Line2D

from figures.drawing import (
    COLUMN,
    WITH_MAN,
    WITHOUT_MAN,
    Drawing,
    new_figure,
    plain_log_ticks,
    print_style,
    say_left_out,
)
from figures.errors import MissingResultsError
from figures.results import Results, require_alike
from figures.unconverged import MEANINGS, doubt

MARKERS = "osD^vPX*<>hd"


def draw_layer_scatter(results: Results) -> Drawing:
    """One mark per layer and run, all runs but those of the sensitivity to zeta; both axes are logarithmic.

    The activations entering a layer bound its eigenvalue; the first layer's are the images, the same in every run. A
    title says how many marks have no place on such axes, and a cross marks what did not converge.
    """
    runs = [run for run in results.usual if "eigs" in run.measured]
    require_alike(runs, "eigs")
    found: list[dict[str, Any]] = [
        {
            "run": run.name,
            "man": run.config.man,
            "layer": layer["name"],
            "input_norm2": layer["input_norm2"],
            "eigenvalue": layer["eigenvalues"][0]["value"],
            "doubt": doubt(layer["eigenvalues"][0]),
        }
        for run in runs
        for layer in run.measured["eigs"]["layers"]
    ]
    if not found:
        raise MissingResultsError("no run has layers in its final.eigs.json")
    rows = [row for row in found if row["input_norm2"] and row["eigenvalue"] > 0]
    if not rows:
        raise MissingResultsError("no layer has an activation norm and an eigenvalue above 0, for logarithmic axes")
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    markers = dict(zip(layers, cycle(MARKERS)))
    with print_style():
        figure, ((axes,),) = new_figure(COLUMN, 2.6)
        for name in layers:
            for man, colour in ((True, WITH_MAN), (False, WITHOUT_MAN)):  # hollow marks on top hide nothing
                own = [row for row in rows if (row["layer"], row["man"]) == (name, man)]
                x, y = ([row[key] for row in own] for key in ("input_norm2", "eigenvalue"))
                axes.plot(x, y, markers[name], color=colour, ms=4, mew=0.8, mfc=colour if man else "none", alpha=0.8)
        doubtful = [row for row in rows if row["doubt"]]
        for row in doubtful:
            axes.plot(row["input_norm2"], row["eigenvalue"], "x", color="black", ms=6, mew=0.6)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel=r"mean $|a|^2$ entering the layer",
            ylabel="top eigenvalue of the layer's block",
        )
        say_left_out(axes, len(rows), len(found))
        for axis in (axes.xaxis, axes.yaxis):
            plain_log_ticks(axis)
        colours = [
            Line2D([], [], marker="o", color=colour, mfc=face, ls="", ms=4, label=label)
            for colour, face, label in ((WITHOUT_MAN, "none", "without MAN"), (WITH_MAN, WITH_MAN, "with MAN"))
        ]
        axes.legend(handles=colours, frameon=True)
        shapes = [Line2D([], [], marker=markers[name], color="0.35", ls="", ms=4, label=name) for name in layers]
        if doubtful:
            label = " or ".join(MEANINGS[mark] for mark in sorted({row["doubt"] for row in doubtful}))
            shapes.append(Line2D([], [], marker="x", color="black", ls="", ms=6, mew=0.6, label=label))
        figure.legend(handles=shapes, loc="outside lower center", ncols=min(len(shapes), 6), frameon=False)
    return Drawing(figure, rows, results.provenance(runs))
