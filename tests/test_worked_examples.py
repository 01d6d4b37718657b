"""The worked examples of CONTRIBUTING.md: each diff applies to the tree as it stands, and what it adds runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import flatlab

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.diff"))


def run(*words: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(cwd), "OMP_NUM_THREADS": "1", "COLUMNS": "150"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with every example in it."""
    folder = tmp_path_factory.mktemp("tree")
    for package in ("flatlab", "analysis", "figures"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "tests"):
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    for example in EXAMPLES:
        run("git", "apply", "--check", str(example), cwd=folder)  # each needs no other
    for example in EXAMPLES:
        run("git", "apply", str(example), cwd=folder)
    return folder


def test_there_is_an_example_of_each_kind() -> None:
    assert [example.stem for example in EXAMPLES] == ["algorithm", "dataset", "engine", "estimator", "figure"]


def test_every_example_is_as_the_lint_wants_it(tree: Path) -> None:
    sources = ("flatlab", "analysis", "figures", "tests/analysis/test_effective_rank.py")
    run(sys.executable, "-m", "ruff", "check", *sources, cwd=tree)
    run(sys.executable, "-m", "ruff", "format", "--check", *sources, cwd=tree)


def command(tree: Path, *words: str) -> str:
    done = flatlab(*words, cwd=tree, first=tree)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_what_they_add_works_together(tree: Path) -> None:
    fields = ("--dataset", "stripes", "--algorithm", "fedyogi", "--engine", "here", "--rounds", "8")
    for man in ("--no-man", "--man"):
        command(tree, "train", *fields, "--out", f"o/{man}", man)
    command(tree, "eigs", "o/--man", "o/--no-man", "--layers", "none")
    command(tree, "effective-rank", "o/--man", "--json", "rank.json")
    assert json.loads((tree / "rank.json").read_text())["effective_rank"]["value"] > 1
    drawn = json.loads(command(tree, "figures", "o", "--json", "-"))
    assert "flat_and_accurate" in drawn["figures"]
    run(sys.executable, "-m", "pytest", "-q", "tests/analysis/test_effective_rank.py", cwd=tree)
