"""The figures of the four commands, and where they are written."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatlab.files import write_files
from flatlab.terminal.console import console

if TYPE_CHECKING:
    from figures.drawing import Drawing

Draw = Callable[[Sequence[Mapping[str, Any]]], "Drawing"]


def save_picture(draw: Draw, results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw into `path`.png, .pdf and .csv (an ending of these that `path` already has is taken off), and say so.

    Where the results cannot be drawn, that is said.
    """
    from figures.errors import MissingResultsError

    try:
        drawing = draw(results)
    except MissingResultsError as error:
        console.print(f"There is no figure: {error}.", markup=False, highlight=False, soft_wrap=True)
    else:
        save_drawing(drawing, picture_path(path).with_suffix(""))


def picture_path(path: Path) -> Path:
    """The .png that `save_picture` writes for `path`, beside which the others are."""
    stem = path.with_suffix("") if path.suffix in (".png", ".pdf", ".csv") else path
    return stem.with_name(f"{stem.name}.png")


def save_drawing(drawing: "Drawing", stem: Path) -> None:
    """Write `stem`.png, .pdf and .csv, and say so."""
    paths = write_files(stem, drawing.files())
    console.print(f"Figure: [bold]{paths[0]}[/bold], .pdf, .csv", soft_wrap=True, highlight=False)
