"""Names and titles that anybody wrote are shown in every format, and never run."""

import csv
import io
import re
from pathlib import Path
from xml.sax.saxutils import escape as html

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from analysis.theory.statements import STATEMENTS
from figures.drawing import Drawing, print_style
from figures.escapes import MATHS, csv_cell, latex, markdown, plain
from figures.formats import as_csv, as_latex, as_markdown
from figures.method_tables import MEASURES
from figures.report import make_report
from figures.table import Table
from flatlab.grid.saved_results import read_results

HOSTILE = (
    r"\input{/etc/passwd}", "<script>alert(1)</script>", "=HYPERLINK(1)", "a|b", "[x](http://y)", "![x](y)", "`x`",
    "$x_{$",
    "a\nb", "\u202egnp", "\x00", "%", "^^5c", "\\", "&lt;", "@x", "-1+1", "~", "{", "}", "''", '"', "\t=1",
)  # fmt: skip
TEXT = st.text() | st.sampled_from(HOSTILE) | st.lists(st.sampled_from(HOSTILE)).map("".join)

COMMANDS = (
    r"\\textbackslash\{\}|\\textasciicircum\{\}|\\textasciitilde\{\}|\\textless\{\}|\\textgreater\{\}|\\textbar\{\}|"
    r"\\textquotedbl\{\}|\\textasciigrave\{\}|\\[{}$%&#_]|\$\\pm\$|\$-\$|\$\\circ\$|``|"
) + "|".join(re.escape(f"${formula}$") for formula in MATHS.values())
"""All that `latex` may write beside plain letters."""


@given(TEXT)
def test_latex_reads_no_command_but_ours(text: str) -> None:
    left = re.sub(COMMANDS, "", latex(text))
    assert not set(left) & set("\\{}$%&#_^~\n")


@given(TEXT)
def test_markdown_reads_no_markup(text: str) -> None:
    shown = markdown(text)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_{}<>|~$&]", shown)
    assert not re.search(r"(?<!\\)(?:\\\\)*\][(\[:]", shown)
    assert re.sub(r"\\([\\`*_{}<>|~$&\]])", r"\1", shown) == plain(text)


@given(TEXT | st.integers() | st.floats())
def test_a_spreadsheet_reads_no_formula(value: str | float) -> None:
    cell = csv_cell(value)
    if not isinstance(value, str):
        assert cell is value
        return
    assert isinstance(cell, str)
    assert cell.removeprefix("'") in (plain(value), plain(value).removeprefix("'"))
    if not re.fullmatch(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", cell.strip(), re.ASCII):
        assert not cell.lstrip().startswith(("=", "+", "-", "@"))


@given(TEXT)
def test_what_is_not_seen_becomes_a_space(text: str) -> None:
    shown = plain(text)
    assert len(shown) == len(text)
    assert "\n" not in shown
    assert "\x00" not in shown
    shown.encode()


@given(TEXT, TEXT)
def test_tables_keep_their_form(title: str, name: str) -> None:
    rows = ((name, title), (title, name))
    table = Table("t", title, (name,), (name, "x"), rows, ({name: title, "x": 1.5}, {"y": name}))
    lines = as_markdown(table).splitlines()
    assert len(lines) == 8
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3 for line in lines[2:6])
    assert len(as_latex(table).splitlines()) == 13 + (title != name)
    written = list(csv.reader(io.StringIO(as_csv(table.numbers))))
    assert len(written) == 3
    assert len({len(line) for line in written}) == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_a_figure_shows_any_name(name: str) -> None:
    with print_style():
        figure = Figure()
        axes = figure.subplots()
        axes.plot([0, 1], [1, 2], label=name)
        axes.set_xticks([0, 1], [name, r"$\lambda$"])
        axes.set(title=name, ylabel=name)
        axes.legend()
    files = Drawing(figure, [{"run": name, "x": 1}], {"runs": name}).files()
    assert Image.open(io.BytesIO(files["png"])).info["Description"] == f"runs {plain(name)}"
    assert files["pdf"].startswith(b"%PDF")
    assert list(csv.reader(files["csv"].decode().splitlines()))[1] == [csv_cell(name), "1"]


def test_a_line_break_is_not_a_glyph_that_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    figure = Figure()
    figure.subplots().set(title="a\nb")
    Drawing(figure, [{"x": 1}], {}).files()
    assert caplog.text == ""


def test_the_page_escapes_too(finished: Path) -> None:
    hostile = "<script>alert(1)</script>"
    table = Table("t", hostile, (hostile,), ("a",), ((hostile,),), ({"a": 1},))
    page = make_report(read_results(finished), [table], {}, {})
    assert hostile not in page
    assert html(hostile) in page


def test_what_statements_and_measures_are_written_with_is_set_by_any_latex() -> None:
    """pdfLaTeX has letters up to Latin Extended-A, dashes and quotation marks; all else must be a command."""
    ours = " ".join((*STATEMENTS.values(), *MEASURES, "mean |a|² after fc1", "ζ = 0.05 ± 1", "−1 ≤ ×2 ○", "σ θ ∇L"))
    assert not [letter for letter in latex(ours) if ord(letter) > 0x17F]
    assert latex("λ₁ ≤ 2") == r"$\lambda$$_{1}$ $\le$ 2"
