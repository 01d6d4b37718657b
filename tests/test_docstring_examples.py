"""The examples in docstrings: every function that the reference lists has one, and it runs as printed."""

import doctest
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[1] / "docs" / "reference"
LISTED = [
    (module, member)
    for page in ("analysis.md", "figures.md")
    for automodule, members, autofunction in re.findall(
        r"automodule:: (\S+)\n +:members: (.+)|autofunction:: (\S+)", (PAGES / page).read_text()
    )
    for module in [automodule or autofunction.rpartition(".")[0]]
    for member in (members or autofunction.rpartition(".")[2]).split(", ")
]
MODULES = dict.fromkeys(module for module, _ in LISTED)


def test_every_function_of_the_reference_has_an_example() -> None:
    listed = [getattr(import_module(module), member) for module, member in LISTED]
    functions = [one for one in listed if inspect.isfunction(one)]
    assert len(functions) > 30
    assert [one.__name__ for one in functions if ">>>" not in (one.__doc__ or "")] == []


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_the_reference_run_as_printed(module: str) -> None:
    assert doctest.testmod(import_module(module)).failed == 0
