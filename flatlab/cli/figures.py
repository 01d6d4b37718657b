"""`flatlab figures`: every figure and table, from saved results."""

from pathlib import Path
from typing import Annotated

import typer


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
    from flatlab.cli.presentation import figures_run, list_figures
    from flatlab.errors import UsageError

    if list_:
        list_figures()
    elif results is None:
        raise UsageError("Name the folder of results, as in flatlab figures checkpoints/toy; or use --list.")
    else:
        figures_run(results, json)
