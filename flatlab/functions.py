"""A user's own functions and algorithms, named on the command line as `package.module:function`."""

import importlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from flatlab.errors import UsageError


def require_named(name: str, trusted: str | None, source: str) -> None:
    """Raise `UsageError` where `source` names a function as its model that the command line does not (`trusted`).

    A file from elsewhere must not choose what is imported.
    """
    if ":" in name and name != trusted:
        raise UsageError(
            f"{source} names as its model the function {name}; to let it run, add --model {shlex.quote(name)}."
        )


_ALLOWED: set[str] = set()


def names_function(name: str) -> bool:
    """Whether `name` is of the form package.module:function; a folder is named with a slash, ./a:b."""
    module, colon, function = name.partition(":")
    return bool(colon) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def let_run(*names: str | None) -> None:
    """Let what the command line names as its data set or algorithm run, in this process."""
    _ALLOWED.update(name for name in names if name is not None)


def may_run(name: str) -> bool:
    """Whether `let_run` was told of `name`."""
    return name in _ALLOWED


def require_let_run(name: str, role: Literal["data set", "algorithm"]) -> None:
    """Raise `UsageError` where `name` is something that `let_run` was not told of: only a file names it."""
    if names_function(name) and not may_run(name):
        option = role.replace(" ", "")
        raise UsageError(f"A file names {name} as its {role}, code of a user's; to let it run, add --{option} {name}.")


def import_function(name: str, role: str) -> Callable[..., Any]:
    """Import the function `package.module:function`, as `import_named`. Raises `UsageError`."""
    function = import_named(name, role, "function ")
    if not callable(function):
        module_name, _, function_name = name.partition(":")
        raise UsageError(f"The {role} '{name}' cannot be had: {module_name} has no function {function_name}.")
    return function  # type: ignore[no-any-return]


def import_named(name: str, role: str, kind: str = "") -> Any:
    """Import what `package.module:name` names, from the installed packages first and then from the current folder.

    `role` is what it is for ("model", "loss") and `kind` what it is, as the errors call it. Raises `UsageError`.
    """
    module_name, _, function_name = name.partition(":")
    if not (function_name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise UsageError(f"The {role} '{name}' is not of the form package.module:function.")
    current_folder = str(Path.cwd())
    if current_folder not in sys.path:
        sys.path.append(current_folder)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            reason = f"there is no module {error.name}, neither installed nor in {current_folder}"
        else:
            reason = f"importing {module_name} raised {type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(f"The {role} '{name}' cannot be had: {reason}.") from error
    found = getattr(module, function_name, None)
    if found is None:
        raise UsageError(f"The {role} '{name}' cannot be had: {module_name} has no {kind}{function_name}.")
    return found
