"""How `make docs` builds the site: these pages, the reference made from the code, and notebooks that are executed."""

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from commands import reference  # noqa: E402

from flatlab import __version__  # noqa: E402

project = "flatlab"
author = "The flatlab developers"
version = release = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]


NOT_HERE = r"(torch|numpy|pandas|matplotlib|scipy|collections|pathlib|typing)\..*|DataFrame"
NOT_PUBLIC = (
    r"(flatlab\.(data|federated|runs|measuring\.subjects)"
    r"|analysis\.(losses|first_pass|model_state|parametric_loss))\..*"
)
MISREAD = r"tuple\[.*"  # of a generated __init__, which is cut at its commas
nitpick_ignore_regex = [("py:.*", f"{NOT_HERE}|{NOT_PUBLIC}|{MISREAD}")]

html_theme = "furo"
html_title = "flatlab"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = html_show_copyright = html_show_sourcelink = html_copy_source = False
smartquotes = False  # which makes one dash of the two before an option
copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. ", True

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True

default_role = "code"  # `names` in docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

FIELD = re.compile(r"^    (\w+): ([^=#\n]+?)(?: = [^#\n]*)?(?: +# (.*))?$", flags=re.MULTILINE)
"""A field of a dataclass, its type and the comment beside it."""

INCLUDED = {"../benchmarks/README.md": "benchmarks.md", "../checkpoints/README.md": "runs.md"}
"""Pages that live beside what they describe, and the pages here that take them in."""


def write_commands(app: Sphinx) -> None:
    """Write the reference of commands from the commands themselves."""
    page = HERE / "reference" / "commands.md"
    content = reference()
    if not page.exists() or page.read_text() != content:  # a page that stays as it is need not be read again
        page.write_text(content)


def between_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Lead links between files of the repository to the pages that show them."""
    for file, page in INCLUDED.items():
        source[0] = source[0].replace(f"]({file}", f"]({'../' * docname.count('/')}{page}")


def as_written(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text, whose mathematics has |v| and A*; only `names` mean something, and examples."""
    example = False
    for place, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example and not line.lstrip().startswith((":", "..")):
            parts = line.split("`")
            parts[::2] = [re.sub(r"([|*_\\])", r"\\\1", part) for part in parts[::2]]
            lines[place] = "`".join(parts)
    if dataclasses.is_dataclass(obj) and isinstance(obj, type):
        lines += ["", *fields_of(obj)]


def fields_of(record: type) -> Iterator[str]:
    """The fields of a dataclass with the comments beside them, which give shapes and units, as a list."""
    for name, kind, comment in FIELD.findall(inspect.getsource(record)):
        if not name.startswith("_"):
            said = re.sub(r"([|*_`\\])", r"\\\1", comment)
            yield f"* ``{name}`` (``{kind}``)" + (f": {said}" if said else "")
    yield ""


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_commands)
    app.connect("source-read", between_pages)
    app.connect("autodoc-process-docstring", as_written)
