"""Top eigenvalues, global and per layer, and accuracy against rounds."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.ticker import LogLocator

from figures.drawing import COLUMN, Drawing, colours, legend_entries, new_figure, print_style, ring
from figures.labels import NETWORK, block_label
from figures.unconverged import MEANING, is_unconverged

STYLES = ("-", "--", ":", "-.")
"""Of the runs, in turn."""


def draw_tracking(runs: Mapping[str, Sequence[Mapping[str, Any]]], provenance: Mapping[str, str]) -> Drawing:
    """Draw the records (lines of metrics.jsonl) of runs that tracked eigenvalues, one line style per run.

    Above, the eigenvalue of the whole Hessian (black) and of each layer (colours) on a log axis, with a hollow mark
    where it did not converge or may have been overlooked; below, test accuracy.

    >>> layers = {"fc1": {"value": 4.0, "converged": True}}
    >>> curvature = {"global": {"value": 8.0, "converged": True}, "layers": layers}
    >>> drawing = draw_tracking({"run": [{"round": 1, "test_accuracy": 0.9, "curvature": curvature}]}, {})
    >>> [(row["quantity"], row["value"]) for row in drawing.rows]
    [('network', 8.0), ('fc1', 4.0), ('test accuracy', 0.9)]
    """
    rows: list[dict[str, Any]] = []
    doubtful = False
    with print_style():
        figure, ((above,), (below,)) = new_figure(COLUMN, 3.4, 2, sharex=True, height_ratios=(2, 1))
        for (label, records), style in zip(runs.items(), cycle(STYLES)):
            tracked = [record for record in records if "curvature" in record]
            names = list(tracked[0]["curvature"]["layers"]) if tracked else []
            note = f" ({label})" if len(runs) > 1 else ""
            for name, colour in zip([NETWORK, *names], ["black", *colours(len(names))], strict=True):
                points = [(record["round"], _entry(record["curvature"], name)) for record in tracked]
                rounds, entries = [t for t, _ in points], [entry for _, entry in points]
                above.plot(
                    rounds, [e["value"] for e in entries], style, color=colour, label=block_label(name) + note, lw=1
                )
                doubtful |= ring(above, rounds, entries, colour)
                rows += [
                    {
                        "run": label,
                        "round": t,
                        "quantity": block_label(name),
                        "value": e["value"],
                        "residual": e.get("residual", ""),
                        "converged": not is_unconverged(e),
                    }
                    for t, e in points
                ]
            evaluated = [(record["round"], record["test_accuracy"]) for record in records if "test_accuracy" in record]
            below.plot(*zip(*evaluated, strict=True), style, color="black", lw=1)
            rows += [
                {
                    "run": label,
                    "round": t,
                    "quantity": "test accuracy",
                    "value": accuracy,
                    "residual": "",
                    "converged": "",
                }
                for t, accuracy in evaluated
            ]
        above.set(ylabel="top Hessian eigenvalue", yscale="log")
        above.yaxis.set_major_formatter("{x:g}")
        above.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        above.yaxis.set_minor_formatter("{x:g}")
        if doubtful:
            above.set_title(MEANING, fontsize=6)
        above.legend(*legend_entries(above), ncols=2, frameon=True, fontsize=6)
        below.set(xlabel="round", ylabel="test accuracy")
    return Drawing(figure, rows, provenance)


def _entry(curvature: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    entry: Mapping[str, Any] = curvature["global"] if name == NETWORK else curvature["layers"][name]
    return entry
