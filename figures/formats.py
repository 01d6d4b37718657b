"""A table as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from figures.escapes import csv_cell, latex, markdown
from figures.table import Table

TEXT_COLUMNS = 2
"""The first columns name the row; the others are numbers, set to the right."""


TABLE_ENDINGS = ("md", "csv", "tex")
"""Of the files that hold a table."""


def table_files(table: Table) -> dict[str, bytes]:
    """The contents of a Markdown, a CSV and a LaTeX file, by their endings."""
    texts = (as_markdown(table), as_csv(table.numbers), as_latex(table))
    return {ending: text.encode() for ending, text in zip(TABLE_ENDINGS, texts, strict=True)}


def as_markdown(table: Table) -> str:
    """Return title, table and notes; the source lines up in a fixed-width font."""
    columns, *rows = [[markdown(cell) for cell in line] for line in (table.columns, *table.rows)]
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < TEXT_COLUMNS else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if i < TEXT_COLUMNS else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    body = "\n".join([line(columns), line(rule), *(line(row) for row in rows)])
    return f"**{markdown(table.title)}**\n\n{body}\n\n{markdown(' '.join(table.notes))}\n"


def as_csv(numbers: Sequence[Mapping[str, Any]]) -> str:
    """Return the numbers in full precision; what does not exist is empty."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in numbers for name in row))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(csv_cell, names))
    writer.writerows([csv_cell(row.get(name, "")) for name in names] for row in numbers)
    return text.getvalue()


def as_latex(table: Table) -> str:
    """Return a table environment that needs the package booktabs; partitions are set apart by a rule."""
    columns = "l" * TEXT_COLUMNS + "r" * (len(table.columns) - TEXT_COLUMNS)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex(' '.join((table.title + '.', *table.notes)))}}}"]
    lines += [rf"\label{{tab:{table.name.replace('_', '-')}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [_latex_row(table.columns), r"\midrule"]
    for previous, row in zip((None, *table.rows), table.rows, strict=False):
        if previous and previous[0] != row[0]:
            lines.append(r"\midrule")
        lines.append(_latex_row(row))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(latex(cell) for cell in cells) + r" \\"
