"""What `flatlab figures` and `flatlab report` do, and what `flatlab reproduce` ends with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from rich import box
from rich.markup import escape
from rich.table import Table as Shown

from figures.formats import table_files
from figures.gallery import FIGURES, draw_figures
from figures.report import make_report
from figures.results import Results
from figures.tables import Table, make_tables
from flatlab.cli.console import console, status, write_json
from flatlab.files import remove_unfinished, write_files, write_text, writing
from flatlab.grid.results import read_results


@dataclass(frozen=True)
class Made:
    """What came of a folder of results."""

    results: Results
    tables: list[Table]
    pictures: Mapping[str, Mapping[str, bytes]]
    drawn: Mapping[str, list[Path]]  # where they are
    skipped: Mapping[str, str]  # figure or table: reason


def present(folder: Path) -> None:
    """Print the tables, write them and the figures, and put everything into the report."""
    made = _make(folder)
    for table in made.tables:
        _print(table)
    page = _write_report(made, None)
    _print_skipped(made)
    console.print(
        f"Tables:  {folder / 'tables'}\nFigures: {folder / 'figures'}\nReport:  [bold]{page}[/bold]", soft_wrap=True
    )


def figures_run(folder: Path, json: Path | None) -> None:
    """Write tables and figures and say where they are."""
    made = _make(folder)
    for name, paths in made.drawn.items():
        console.print(f"{name}: [bold]{paths[0]}[/bold], .pdf, .csv", soft_wrap=True)
    console.print(f"tables: [bold]{folder / 'tables'}[/bold]", soft_wrap=True)
    _print_skipped(made)
    write_json(json, _plain(made))


def report_run(folder: Path, out: Path | None, json: Path | None) -> None:
    """Write the page and say where it is."""
    made = _make(folder)
    page = _write_report(made, out)
    _print_skipped(made)
    console.print(f"Report: [bold]{page}[/bold]", soft_wrap=True)
    write_json(json, {"report": str(page), **_plain(made)})


def list_figures() -> None:
    """Print every figure with what it shows and what it is made from."""
    shown = Shown(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("figure", "shows", "made from"):
        shown.add_column(heading)
    for name, figure in FIGURES.items():
        shown.add_row(name, figure.caption, figure.needs)
    console.print(shown)


def _make(folder: Path) -> Made:
    results = read_results(folder)
    with _alone(folder):
        return _written(results, folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within the block no other process writes tables, figures or report, and what one that was killed left is gone."""
    figures = folder / "figures"
    with writing(figures):
        figures.mkdir(parents=True, exist_ok=True)
        lock = FileLock(figures / ".lock")
        lock.acquire()
    try:
        for place in (folder / "tables", figures):
            remove_unfinished(place)
        for file in folder.glob(".report.html.*.part"):
            file.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _written(results: Results, folder: Path) -> Made:
    tables, without = make_tables(results)
    for table in tables:
        write_files(folder / "tables" / table.name, table_files(table))
    with status.status("Drawing"):
        drawings, skipped = draw_figures(results)
        pictures = {name: drawing.files() for name, drawing in drawings.items()}
    drawn = {name: write_files(folder / "figures" / name, files) for name, files in pictures.items()}
    reasons = {f"table {name}": reason for name, reason in without.items()}
    reasons |= {f"figure {name}": reason for name, reason in skipped.items()}
    return Made(results, tables, pictures, drawn, reasons)


def _write_report(made: Made, out: Path | None) -> Path:
    page = out or made.results.folder / "report.html"
    with _alone(made.results.folder):
        write_text(page, make_report(made.results, made.tables, made.pictures, made.skipped))
    return page


def _print(table: Table) -> None:
    shown = Shown(title=escape(table.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(table.columns):
        shown.add_column(escape(heading), justify="left" if i < 2 else "right")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    console.print(shown)


def _print_skipped(made: Made) -> None:
    for name, reason in made.skipped.items():
        console.print(f"[dim]{name} skipped: {escape(reason)}[/dim]", soft_wrap=True)


def _plain(made: Made) -> dict[str, object]:
    return {
        "figures": {name: [str(path) for path in paths] for name, paths in made.drawn.items()},
        "tables": {table.name: list(table.numbers) for table in made.tables},
        "skipped": dict(made.skipped),
    }
