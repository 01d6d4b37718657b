"""How S1 and S2, which bound the whole by its layers, fare while a network trains."""

from itertools import cycle
from typing import Any

from figures.drawing import COLUMN, Drawing, colours, new_figure, print_style

MARKERS = "osD^vP"


def draw_theory_slack(results: dict[str, Any]) -> Drawing:
    """Draw a saved result of `flatlab verify`: one line per coefficient, from initialisation (hollow) on.

    Both axes are divided by the network's top eigenvalue: right minus left side of the statement, and how negative the
    smallest eigenvalue is.
    """
    moments = results["training"]
    rows = [
        {
            "zeta": m["zeta"],
            "step": m["step"],
            "top": m["top"],
            "smallest_over_top": m["smallest"] / m["top"],
            "S1_slack_over_top": m["slack1"] / m["top"],
            "S2_slack_over_top": m["slack2"] / m["top"],
        }
        for m in moments
    ]
    zetas = list(dict.fromkeys(row["zeta"] for row in rows))
    with print_style():
        figure, grid = new_figure(COLUMN, 3.8, 2, sharex=True, height_ratios=(3, 2))
        panels = grid[:, 0]
        for axes, statement in zip(panels, ("S1", "S2"), strict=True):
            for zeta, colour, marker in zip(zetas, colours(len(zetas)), cycle(MARKERS)):
                own = [row for row in rows if row["zeta"] == zeta]
                x = [row["smallest_over_top"] for row in own]
                y = [row[f"{statement}_slack_over_top"] for row in own]
                style = {"color": colour, "marker": marker, "ms": 4, "lw": 0.8}
                axes.plot(x[1:], y[1:], mec="white", mew=0.4, label=f"ζ = {zeta:g}", **style)
                axes.plot(x[:2], y[:2], mfc="white", markevery=[0], **style)
            axes.axhline(0, color="0.2", lw=0.8)
            axes.set_ylabel(f"slack of {statement} / " + r"$\lambda_{\max}$")
        low, high = panels[0].get_ylim()
        panels[0].axhspan(low, 0, color="0.9", zorder=0)
        panels[0].text(0.98, 0.03, "S1 fails", transform=panels[0].transAxes, ha="right", va="bottom")
        panels[0].set_ylim(low, high)
        panels[1].set_ylim(bottom=-0.05)
        panels[1].set_xlabel(r"$\lambda_{\min}(H)\,/\,\lambda_{\max}(H)$")
        panels[0].legend(frameon=True)
        figure.align_ylabels(panels)
    return Drawing(figure, rows, {**results["versions"], "network": "16-10-10-10 ReLU on digits"})
