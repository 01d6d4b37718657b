"""`flatlab report`: one page with everything."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[Path, typer.Argument(help="Folder of runs, as flatlab reproduce fills it.")],
    out: Annotated[Path | None, typer.Option(help="The page (default: report.html in that folder).")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the paths, and what was skipped, to this file.")] = None,
) -> None:
    """Write one self-contained HTML page: tables, figures, verdicts of flatlab verify, and how each number is made."""
    from flatlab.cli.presentation import report_run

    report_run(results, out, json)
