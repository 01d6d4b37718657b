"""Accuracy, top eigenvalue and trace against MAN's coefficient."""

from collections import defaultdict
from typing import Any

from figures.drawing import COLUMN, PALETTE, Drawing, new_figure, print_style, put_mark
from figures.errors import MissingResultsError
from figures.results import Result, Results, require_alike
from figures.statistics import sample
from figures.unconverged import explained, worst

QUANTITIES = {"test accuracy, %": "accuracy", "top eigenvalue": "top_eigenvalue", "trace": "trace"}


def draw_zeta_sensitivity(results: Results) -> Drawing:
    """Means over seeds with standard deviations, for the method that was run at several zetas; 0 is without MAN."""
    runs = _several_zetas(results)
    zetas = sorted({run.config.zeta if run.config.man else 0.0 for run in runs})
    rows: list[dict[str, Any]] = []
    with print_style():
        figure, grid = new_figure(COLUMN, 3.8, 3, sharex=True)
        panels = grid[:, 0]
        for axes, (label, name) in zip(panels, QUANTITIES.items(), strict=True):
            for place, zeta in enumerate(zetas):
                same = [run for run in runs if (run.config.zeta if run.config.man else 0.0) == zeta]
                values = [getattr(run, name) for run in same if getattr(run, name) is not None]
                summary = sample([100 * value if name == "accuracy" else value for value in values])
                if summary is None:
                    continue
                axes.errorbar(
                    place, summary.mean, summary.deviation or 0.0, fmt="o", color=PALETTE[0], ms=4, capsize=2, lw=1
                )
                doubts = [run.doubt(name) for run in same]
                put_mark(axes, place, summary.mean + (summary.deviation or 0.0), worst(doubts))
                rows.append(
                    {
                        "quantity": label,
                        "zeta": zeta,
                        "mean": summary.mean,
                        "deviation": summary.deviation,
                        "seeds": summary.count,
                        "unconverged": sum(map(bool, doubts)),
                    }
                )
            axes.set_ylabel(label)
            axes.margins(x=0.1, y=0.15)
        panels[-1].set_xticks(range(len(zetas)), [f"{zeta:g}" for zeta in zetas])
        panels[-1].set_xlabel("ζ, coefficient of MAN (not to scale)")
        doubts = [run.doubt(name) for run in runs for name in QUANTITIES.values()]
        panels[0].set_title(explained(runs[0].setting, doubts))
        figure.align_ylabels(panels)
    return Drawing(figure, rows, results.provenance(runs))


def _several_zetas(results: Results) -> list[Result]:
    """The runs of the first algorithm and partition with three coefficients or more, no MAN being one of them."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for run in results.runs:
        if run.trained:
            groups[run.config.algorithm, run.row].append(run)
    for runs in groups.values():
        if len({run.config.zeta if run.config.man else 0.0 for run in runs}) > 2:
            require_alike(runs, "eigs")
            require_alike(runs, "trace")
            return runs
    raise MissingResultsError("no method was run at several zetas; the grid's [sensitivity] asks for them")
