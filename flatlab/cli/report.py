"""`flatlab report`: one page with everything."""

from pathlib import Path
from typing import Annotated

import typer

from flatlab.cli.console import require_places, write_json
from flatlab.cli.figures import print_skipped
from flatlab.terminal.console import console, say, status


def report(
    results: Annotated[Path, typer.Argument(help="Folder of runs, as flatlab reproduce fills it.")],
    out: Annotated[Path | None, typer.Option(help="The page (default: report.html in that folder).")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the paths, and what was skipped, to this file.")] = None,
) -> None:
    """Write one self-contained HTML page: tables, figures, verdicts of flatlab verify, and how each number is made."""
    from flatlab.grid.pages import make_pages, takes_pages, write_report

    require_places([out, json])
    keep = out is None or takes_pages(results)
    with status.status("Drawing"):
        pages = make_pages(results, keep=keep)
        page = write_report(pages, out)
    print_skipped(pages.skipped)
    say("" if keep else f"{results} takes no files: its tables and figures are on the page alone.")
    console.print(f"Report: [bold]{page}[/bold]", soft_wrap=True)
    write_json(json, {"report": str(page), **pages.to_dict()})
