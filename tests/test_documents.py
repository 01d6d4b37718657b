"""What the documents say can be done as they say, and CITATION.cff is what tools expect of one."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from flatlab import __version__
from flatlab.cli.main import app
from flatlab.grid.plan import grid_cells, parse_grid
from tests.command_line import flatlab

ROOT = Path(__file__).parent.parent
QUESTIONS = ROOT / "docs" / "questions"

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
OTHERS = {
    "--auth-supernode-private-key", "--enable-supernode-auth", "--signal", "--requeue", "--nnodes", "--rdzv-endpoint"
}  # fmt: skip
"""Options of other programs that the pages name."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (QUESTIONS / page).read_text(), flags=re.DOTALL)


def test_ones_own_model_is_measured_as_its_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, fit, measure = blocks("own-model.md", "python")
    (tmp_path / "mine.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    exec(fit, {})  # our own document
    exec(measure, {})
    del sys.modules["mine"]
    command = re.search(r"^flatlab (eigs --model .*)$", (QUESTIONS / "own-model.md").read_text(), flags=re.MULTILINE)
    assert command is not None
    done = flatlab(*command[1].split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = capsys.readouterr().out + done.stdout
    shown = re.findall(r"(0\.\d{3})\d* (?:±|\+-)", (QUESTIONS / "own-model.md").read_text())
    assert len(shown) > 5
    for number in shown:  # to three digits, as processors round differently
        assert number in printed


def test_the_grid_of_the_page_on_man_is_one() -> None:
    (text,) = blocks("man.md", "toml")
    assert len(grid_cells(parse_grid(text, "mine.toml"))) == 6


def test_the_citation_file_has_what_is_required_and_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # required by version 1.2.0 of the format
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert str(citation["version"]) == __version__
    assert (citation["title"], citation["license"]) == (project["name"], project["license"])
    assert citation["authors"] == [{"name": "The flatlab developers"}]
    (paper,) = citation["references"]
    assert {"type", "title", "authors", "year"} <= set(paper)
    assert paper["title"] in (ROOT / "README.md").read_text()
    assert all({"family-names", "given-names"} <= set(author) for author in paper["authors"])


def unknown_options(text: str) -> list[str]:
    """Options in the code of a page that the command before them does not have, or, if they stand alone, none has."""
    root = get_command(app)
    known = {
        name: {"--help", *(word for each in command.params for word in (*each.opts, *each.secondary_opts))}
        for name, command in {"": root, **root.commands}.items()  # type: ignore[attr-defined]
    }
    unknown = []
    for code in re.findall(r"```.*?```|`[^`]+`", text, flags=re.DOTALL):
        for command, words in re.findall(r"\bflatlab +([a-z]+)([^`\n|;&#]*)", code.replace("\\\n", " ")):
            named = re.findall(r"(?<![\w-])--[a-z][a-z-]*", words)
            unknown += [f"{command} {option}" for option in named if option not in known.get(command, named)]
        alone = re.match(r"`(--[a-z][a-z-]*)", code)
        if alone and alone[1] not in OTHERS.union(*known.values()):
            unknown.append(alone[1])
    return unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_that_a_page_names_exists(page: Path) -> None:
    assert unknown_options(page.read_text()) == []


def test_an_option_that_does_not_exist_would_be_found() -> None:
    text = "`--lr 0.1` `--train-samples` ```sh\nflatlab train --lr 1 \\\n  --tol 2  # --no\nflatlab eigs x --tol 2\n```"
    assert unknown_options(text) == ["--train-samples", "train --tol"]
