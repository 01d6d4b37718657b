"""The examples in docstrings: every function that the reference lists has one, and it runs as printed."""

import doctest
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "analysis.md").read_text()
LISTED = re.findall(r"automodule:: (\S+)\n +:members: (.+)", PAGE)


@pytest.mark.parametrize(("name", "members"), LISTED, ids=[name for name, _ in LISTED])
def test_every_function_of_the_reference_has_an_example_that_runs(name: str, members: str) -> None:
    module = import_module(name)
    listed = [getattr(module, member) for member in members.split(", ")]
    functions = [one for one in listed if inspect.isfunction(one)]
    assert [one.__name__ for one in functions if ">>>" not in (one.__doc__ or "")] == []
    assert doctest.testmod(module).failed == 0
