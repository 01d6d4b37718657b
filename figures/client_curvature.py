"""Top eigenvalue of each client's own loss at the global model, beside that of all clients together."""

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from figures.captions import Saved, origin, setting, subject_labels, subject_name
from figures.drawing import COLUMN, Drawing, colours, legend_entries, new_figure, print_style, ring
from figures.unconverged import MEANING, is_unconverged


def draw_client_curvature(saved: Sequence[Saved]) -> Drawing:
    """Draw saved results of `flatlab eigs --clients`, the clients from the sharpest to the flattest.

    The dashed line is the eigenvalue of all clients' loss together, with a ring at its beginning where it did not
    converge; statement F says that it is not above the dotted one, the weighted mean of the clients' own.

    >>> client = {"client": 0, "samples": 90, "eigenvalues": [{"value": 8.0, "residual": 0.01}]}
    >>> data = {"dataset": "digits", "split": "train", "samples": 500}
    >>> saved = {"checkpoint": "run/final.pt", "data": data, "versions": {"torch": "2.13.0"}}
    >>> drawing = draw_client_curvature([{**saved, "clients": [client], "statement_F": {"left": 5.0, "right": 6.0}}])
    >>> drawing.rows[0]["eigenvalue"], sorted(drawing.files())
    (8.0, ['csv', 'pdf', 'png'])
    """
    rows = [
        {
            "subject": subject_name(one),
            "client": entry["client"],
            "samples": entry["samples"],
            "eigenvalue": entry["eigenvalues"][0]["value"],
            "residual": entry["eigenvalues"][0]["residual"],
            "converged": not is_unconverged(entry["eigenvalues"][0]),
        }
        for one in saved
        for entry in one["clients"]
    ]
    doubtful = False
    with print_style():
        figure, ((axes,),) = new_figure(COLUMN, 2.7)
        for one, colour, label in zip(saved, colours(len(saved)), subject_labels(saved), strict=True):
            tops = sorted((c["eigenvalues"][0] for c in one["clients"]), key=lambda top: top["value"], reverse=True)
            places = range(1, len(tops) + 1)
            axes.plot(places, [top["value"] for top in tops], "o", ms=3, color=colour, label=label)
            doubtful |= ring(axes, places, tops, colour)
            axes.axhline(one["statement_F"]["right"], color=colour, ls=":", lw=1)
            axes.axhline(one["statement_F"]["left"], color=colour, ls="--", lw=1)
            whole = one.get("global", {}).get("eigenvalues", [])[:1]
            doubtful |= ring(axes, [0] * len(whole), whole, colour)
        for style, label in ((":", "weighted mean of the clients"), ("--", "all clients together")):
            axes.plot([], [], style, color="0.35", lw=1, label=label)
        axes.set(
            xlabel="client, from the sharpest",
            ylabel="top Hessian eigenvalue",
            title="\n".join([setting(saved[0]), *([MEANING] if doubtful else [])]),
            ylim=(0, None),
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="x")
        figure.legend(*legend_entries(axes), loc="outside lower center", ncols=2, frameon=False)
    return Drawing(figure, rows, origin(saved))
