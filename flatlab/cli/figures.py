"""`flatlab figures`: every figure and table, from saved results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from flatlab.cli.console import require_places, write_json
from flatlab.terminal.console import console, status


def figures(
    results: Annotated[
        Path | None, typer.Argument(help="Folder of runs, as flatlab reproduce fills it.", show_default=False)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the figures and what they are made from.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the paths, and what was skipped, to this file.")] = None,
) -> None:
    """Draw every figure (PNG, PDF, plotted numbers as CSV) and write every table (Markdown, CSV, LaTeX).

    Nothing is trained or measured: a figure whose results are not there is skipped, with the reason.
    """
    from flatlab.errors import UsageError
    from flatlab.grid.pages import make_pages

    if list_:
        _print_list()
        return
    if results is None:
        raise UsageError("Name the folder of results, as in flatlab figures checkpoints/toy; or use --list.")
    require_places([json])
    with status.status("Drawing"):
        pages = make_pages(results)
    for name, paths in pages.drawn.items():
        console.print(f"{name}: [bold]{paths[0]}[/bold], .pdf, .csv", soft_wrap=True)
    console.print(f"tables: [bold]{results / 'tables'}[/bold]", soft_wrap=True)
    print_skipped(pages.skipped)
    write_json(json, pages.to_dict())


def print_skipped(skipped: Mapping[str, str]) -> None:
    """Say which figures and tables were not made, and why."""
    for name, reason in skipped.items():
        console.print(f"[dim]{name} skipped: {escape(reason)}[/dim]", soft_wrap=True)


def _print_list() -> None:
    from figures.gallery import FIGURES

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("figure", "shows", "made from"):
        shown.add_column(heading)
    for name, figure in FIGURES.items():
        shown.add_row(name, figure.caption, figure.needs)
    console.print(shown)
