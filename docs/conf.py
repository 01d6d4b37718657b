"""How `make docs` builds the site: these pages, the reference made from the code, and notebooks that are executed."""

import re
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent

project = "flatlab"
author = "The flatlab authors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
nitpicky = False

html_theme = "furo"
html_title = "flatlab"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True

default_role = "code"  # `names` in docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

INCLUDED = {"../benchmarks/README.md": "benchmarks.md", "../checkpoints/README.md": "runs.md"}
"""Pages that live beside what they describe, and the pages here that take them in."""


def commands(app: Sphinx) -> None:
    """Write the reference of commands from the commands themselves."""
    typer = [sys.executable, "-m", "typer", "flatlab.cli.main", "utils", "docs", "--name", "flatlab"]
    text = subprocess.run(typer, check=True, capture_output=True, text=True).stdout
    page = HERE / "reference" / "commands.md"
    title = "# Commands\n\nMade from what `flatlab COMMAND --help` says.\n\n"
    content = title + re.sub(r"\A.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    if not page.exists() or page.read_text() != content:  # a page that stays as it is need not be read again
        page.write_text(content)


def between_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Lead links between files of the repository to the pages that show them."""
    for file, page in INCLUDED.items():
        source[0] = source[0].replace(f"]({file}", f"]({'../' * docname.count('/')}{page}")


def as_written(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text, whose mathematics has |v| and A*; only `names` mean something."""
    if any(line.lstrip().startswith(".. ") for line in lines):
        return
    for place, line in enumerate(lines):
        parts = line.split("`")
        lines[place] = "`".join(part if i % 2 else re.sub(r"([|*_\\])", r"\\\1", part) for i, part in enumerate(parts))


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", commands)
    app.connect("source-read", between_pages)
    app.connect("autodoc-process-docstring", as_written, priority=900)  # after napoleon
