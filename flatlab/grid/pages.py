"""What a folder of results is made into: tables, figures, and one page with both."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from figures.drawing import DRAWING_ENDINGS
from figures.formats import TABLE_ENDINGS, table_files
from figures.gallery import FIGURES, draw_figures
from figures.report import make_report
from figures.results import Results
from figures.table import Table
from figures.tables import METHOD_TABLES, TABLES, make_tables
from flatlab.files import (
    WriteError,
    file_lock,
    remove_files,
    remove_unfinished,
    require_writable,
    write_files,
    write_text,
    writing,
)
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

    Files of those that the results no longer allow are taken away: their numbers are those of other results.
    Raises `UsageError` where the folder holds no finished run, or runs that may not stand in one table, and
    `WriteError`.
    """
    results = read_results(folder)  # which refuses it before anything is made there
    with _alone(folder) if keep else nullcontext():
        results = read_results(folder) if keep else results  # whoever was waited for may have read later than that
        tables, without = make_tables(results)
        if keep:
            texts = {table.name: table_files(table) for table in tables}
            _replace(folder / "tables", texts, (*TABLES, *METHOD_TABLES), TABLE_ENDINGS)
        drawings, skipped = draw_figures(results)
        pictures = {name: drawing.files() for name, drawing in drawings.items()}
        drawn = _replace(folder / "figures", pictures, FIGURES, DRAWING_ENDINGS) if keep else {}
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


def _replace(
    place: Path, made: Mapping[str, Mapping[str, bytes]], names: Iterable[str], endings: Sequence[str]
) -> dict[str, list[Path]]:
    """Write the files of what was `made` into `place`, and take away those of all other `names`; returns paths."""
    for name in names:
        if name not in made:
            remove_files(place / name, endings)
    return {name: write_files(place / name, files) for name, files in made.items()}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within the block no other process writes tables, figures or report, and what one that was killed left is gone."""
    figures = folder / "figures"
    with writing(figures):
        figures.mkdir(parents=True, exist_ok=True)
        lock = file_lock(figures / ".lock")
        lock.acquire()
    try:
        for place in (folder / "tables", figures):
            remove_unfinished(place)
        for file in folder.glob(".report.html.*.part"):
            file.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
