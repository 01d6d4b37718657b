"""How every figure looks and is saved: PNG and PDF, the plotted numbers as CSV, and where they came from."""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.mathtext import MathTextParser
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullFormatter

from figures.escapes import metadata as metadata_text
from figures.formats import as_csv
from figures.unconverged import is_unconverged

COLUMN = 3.4
"""Width of one column of a two-column paper, in inches."""

PALETTE = sns.color_palette("colorblind")
WITHOUT_MAN, WITH_MAN = PALETTE[0], PALETTE[1]
"""Blue without, orange with MAN, in every figure; told apart by colour-blind readers."""


def colours(count: int) -> Sequence[Any]:
    """`count` colours, told apart by colour-blind readers up to ten."""
    return list(sns.color_palette("colorblind", count))


@contextmanager
def print_style() -> Iterator[None]:
    """Within the block, draw with 8-point text and thin axes, wherever the figure will be shown."""
    settings: Any = {  # matplotlib types every key apart
        "figure.dpi": 200,
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "legend.fontsize": 7,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "axes.linewidth": 0.6,
        "grid.linewidth": 0.5,
        "pdf.fonttype": 42,
    }
    with sns.axes_style("whitegrid"), matplotlib.rc_context(settings):
        yield


def plain_log_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers: powers of ten, and 2 and 5 times these where there is room."""
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1,) if high > 300 * low else (1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def say_left_out(axes: Axes, drawn: int, found: int) -> None:
    """Say above logarithmic `axes` how many of the marks are not `drawn`."""
    if drawn < found:
        said = f"{found - drawn} of {found} marks are not above 0 and left out"
        axes.set_title("\n".join(filter(None, [axes.get_title(), said])), fontsize=6)


def put_mark(axes: Axes, x: float, y: float, mark: str) -> None:
    """Set a mark right above a point, where that can be drawn."""
    if mark and math.isfinite(y):
        axes.annotate(mark, (x, y), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=7)


def ring(axes: Axes, rounds: Sequence[int], entries: Sequence[Mapping[str, Any]], colour: Any) -> bool:
    """Put a hollow mark on those of the eigenvalues (against rounds) that are not converged; whether there are any."""
    found = [(t, entry["value"]) for t, entry in zip(rounds, entries, strict=True) if is_unconverged(entry)]
    for t, value in found:
        axes.plot(t, value, "o", color=colour, mfc="white", ms=4.5)
    return bool(found)


DRAWING_ENDINGS = ("png", "pdf", "csv")
"""Of the files that hold a figure."""


@dataclass(frozen=True)
class Drawing:
    """A figure, with the numbers in it and where they came from."""

    figure: Figure
    rows: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, str]

    def files(self) -> dict[str, bytes]:
        """The contents of a PNG, a PDF and a CSV, by their endings.

        The rows, one mapping per mark, are the CSV; the provenance (versions, commit, configuration) goes into the
        metadata of both pictures.
        """
        note = metadata_text("; ".join(f"{key} {value}" for key, value in self.provenance.items()))
        metadata: dict[str, dict[str, str | None]] = {
            "png": {"Description": note},
            "pdf": {"Subject": note, "CreationDate": None},
        }
        _keep_dollars(self.figure)
        with print_style():
            pictures = {kind: _picture(self.figure, kind, fields) for kind, fields in metadata.items()}
        return {**pictures, "csv": as_csv(self.rows).encode()}


def _picture(figure: Figure, kind: str, metadata: Mapping[str, str | None]) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format=kind, bbox_inches="tight", metadata=metadata)
    return content.getvalue()


def new_figure(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    *,
    sharex: bool = False,
    sharey: bool | Literal["row", "col"] = False,
    height_ratios: Sequence[float] | None = None,
) -> tuple[Figure, Any]:
    """A figure in inches that no display knows of, nor pyplot, and its axes (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey, height_ratios=height_ratios)
    return figure, panels


def legend_entries(axes: Axes) -> tuple[list[Any], list[str]]:
    """What a legend of `axes` names, and how: those too that begin with "_", as layers and folders of runs may."""
    drawn = [artist for artist in axes.get_children() if isinstance(artist, Line2D | Patch | Collection)]
    own = [(artist, artist.get_label()) for artist in (*drawn, *axes.containers)]
    named = [(artist, str(label)) for artist, label in own if label and not _AUTOMATIC.fullmatch(str(label))]
    return [artist for artist, _ in named], [label for _, label in named]


_AUTOMATIC = re.compile(r"_(child|container)\d+|_nolegend_")
"""How matplotlib labels what was given no name."""


def legend_below(figure: Figure, ncols: int = 2) -> None:
    """Name below everything what any of the panels shows, once."""
    named: dict[Any, Any] = {}
    for axes in figure.axes:
        handles, labels = legend_entries(axes)
        named |= dict(zip(labels, handles, strict=True))
    order = sorted(named, reverse=True)  # "without MAN" first
    figure.legend([named[name] for name in order], order, loc="outside lower center", ncols=ncols, frameon=False)


def label_bottom(figure: Figure, label: str) -> None:
    """Label, with its ticks, the lowest panel of every column of a grid whose panels share the axis."""
    lowest: dict[int, Axes] = {}
    for axes in figure.axes:
        place = axes.get_subplotspec()
        assert place is not None
        lowest[place.colspan.start] = axes  # row by row
    for axes in lowest.values():
        axes.set_xlabel(label)
        axes.tick_params(labelbottom=True)


def _keep_dollars(figure: Figure) -> None:
    """Show texts whose dollars enclose no mathematics as they are: names of folders and layers may be such."""
    parser = MathTextParser("path")
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_ticklabels()  # which makes them
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if "$" not in text.get_text():
            continue
        try:
            for line in text.get_text().split("\n"):  # as they are drawn
                parser.parse(line)
        except ValueError:
            text.set_parse_math(False)
