"""Curvature of clients' losses at their own models, beside that of the global loss there and at the global model."""

from collections.abc import Sequence

from figures.captions import Saved, origin, setting, subject_labels, subject_name
from figures.drawing import COLUMN, Drawing, colours, legend_entries, new_figure, plain_log_ticks, print_style, ring
from figures.unconverged import MEANING, is_unconverged

_X = ("own loss,\nown model", "global loss,\nown model", "own loss,\nglobal model", "global loss,\nglobal model")
_PLACES = ("own_at_own", "whole_at_own", "own_at_global")


def draw_local_global(saved: Sequence[Saved]) -> Drawing:
    """Draw saved results of `flatlab clients`: a line per client over the four pairs of a loss and a model.

    >>> top = {"eigenvalues": [{"value": 8.0}]}
    >>> data = {"dataset": "digits", "split": "train", "samples": 500}
    >>> saved = {"checkpoint": "run/final.pt", "data": data, "versions": {"torch": "2.13.0"}}
    >>> client = {"client": 0, "distance": 0.5, "own_at_own": top, "whole_at_own": top, "own_at_global": top}
    >>> draw_local_global([{**saved, "global": top, "clients": [client]}]).rows[0]["whole_at_global"]
    8.0
    """
    rows = [
        {
            "subject": subject_name(one),
            "client": entry["client"],
            "distance": entry["distance"],
            **{place: entry[place]["eigenvalues"][0]["value"] for place in _PLACES},
            "whole_at_global": one["global"]["eigenvalues"][0]["value"],
            "converged": not any(map(is_unconverged, _tops(one, entry))),
        }
        for one in saved
        for entry in one["clients"]
    ]
    doubtful = False
    with print_style():
        figure, ((axes,),) = new_figure(COLUMN * 1.5, 3.0)
        for one, colour, label in zip(saved, colours(len(saved)), subject_labels(saved), strict=True):
            tops = [_tops(one, entry) for entry in one["clients"]]
            lines = [[top["value"] for top in own] for own in tops]
            for own, line in zip(tops, lines, strict=True):
                axes.plot(range(4), line, "-", color=colour, lw=0.6, alpha=0.4)
                doubtful |= ring(axes, range(4), own, colour)
            mean = [sum(column) / len(lines) for column in zip(*lines, strict=True)]
            axes.plot(range(4), mean, "o-", color=colour, ms=4, label=label)
        axes.set_xticks(range(4), _X)
        title = "\n".join([setting(saved[0]), *([MEANING] if doubtful else [])])
        axes.set(ylabel="top Hessian eigenvalue", title=title)
        if all(value > 0 for row in rows for name, value in row.items() if name in (*_PLACES, "whole_at_global")):
            axes.set_yscale("log")
            plain_log_ticks(axes.yaxis)
        axes.grid(visible=False, axis="x")
        figure.legend(*legend_entries(axes), loc="outside lower center", ncols=2, frameon=False)
    return Drawing(figure, rows, origin(saved))


def _tops(saved: Saved, client: Saved) -> list[Saved]:
    """The client's top eigenvalues as they were saved, in the order of the axis."""
    return [*(client[place]["eigenvalues"][0] for place in _PLACES), saved["global"]["eigenvalues"][0]]
