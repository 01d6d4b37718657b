"""What a folder of results is made into: tables, figures, and one page with both."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from figures.formats import table_files
from figures.gallery import draw_figures
from figures.report import make_report
from figures.results import Results
from figures.table import Table
from figures.tables import make_tables
from flatlab.files import WriteError, remove_unfinished, require_writable, write_files, write_text, writing
from flatlab.grid.saved_results import read_results


@dataclass(frozen=True)
class Pages:
    """What came of a folder of results."""

    results: Results
    tables: list[Table]
    pictures: Mapping[str, Mapping[str, bytes]]
    drawn: Mapping[str, list[Path]]  # where they are
    skipped: Mapping[str, str]  # figure or table: reason

    def to_dict(self) -> dict[str, object]:
        """The paths of the figures, the numbers of the tables, and why the others were skipped."""
        return {
            "figures": {name: [str(path) for path in paths] for name, paths in self.drawn.items()},
            "tables": {table.name: list(table.numbers) for table in self.tables},
            "skipped": dict(self.skipped),
        }


def make_pages(folder: Path, *, keep: bool = True) -> Pages:
    """Make the tables and figures of `folder` and, to `keep` them, write them into it; nothing is trained or measured.

    Raises `UsageError` where the folder holds no finished run, or runs that may not stand in one table, and
    `WriteError`.
    """
    results = read_results(folder)
    with _alone(folder) if keep else nullcontext():
        tables, without = make_tables(results)
        for table in tables if keep else ():
            write_files(folder / "tables" / table.name, table_files(table))
        drawings, skipped = draw_figures(results)
        pictures = {name: drawing.files() for name, drawing in drawings.items()}
        kept = pictures if keep else {}
        drawn = {name: write_files(folder / "figures" / name, files) for name, files in kept.items()}
    reasons = {f"table {name}": reason for name, reason in without.items()}
    reasons |= {f"figure {name}": reason for name, reason in skipped.items()}
    return Pages(results, tables, pictures, drawn, reasons)


def write_report(pages: Pages, out: Path | None) -> Path:
    """Write everything on one page, by default report.html in the folder of the results; returns its path."""
    folder = pages.results.folder
    page = out or folder / "report.html"
    with nullcontext() if out else _alone(folder):
        write_text(page, make_report(pages.results, pages.tables, pages.pictures, pages.skipped))
    return page


def takes_pages(folder: Path) -> bool:
    """Whether tables and figures can be written into `folder`; results may lie where they can only be read."""
    try:
        require_writable(folder / "figures" / ".lock")
    except WriteError:
        return False
    return True


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
