"""Algorithms by their names: flatlab's, and a user's own as `package.module:ALGORITHM`, from a file of theirs."""

import math
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from pydantic import ValidationError

from flatlab.errors import UsageError, shown
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.algorithms.base import Algorithm, Hyper
from flatlab.federated.complaints import field_and_reason
from flatlab.functions import import_named, may_run, names_function, require_let_run


def find_algorithm(name: str) -> Algorithm:
    """The algorithm that `RunConfig.algorithm` names.

    Raises `UsageError` where it is a user's own that the command line did not name, or that is no `Algorithm`.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    require_let_run(name, "algorithm")
    return _own(name)


def hyper_of(name: object) -> type[Hyper] | None:
    """The hyperparameters of the algorithm `name`; None where there is no such, or where its file must not run here.

    A checkpoint of a user's own algorithm is read without that file.
    """
    if not isinstance(name, str):
        return None
    return find_algorithm(name).hyper if name in ALGORITHMS or (names_function(name) and may_run(name)) else None


def short_name(name: str) -> str:
    """What files and folders are called by: `mine.fedyogi` for `mine.fedyogi:ALGORITHM`."""
    return name.removesuffix(":ALGORITHM").replace(":", "-")


def require_plain(hyper: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless all values are what a file may say of an algorithm whose own file is not read."""
    for key, value in hyper.items():
        finite = not isinstance(value, float) or math.isfinite(value)
        if not isinstance(value, bool | int | float | str) or not finite:
            raise ValueError(f"{shown(key)} must be a finite number, a word, true or false")


@cache
def _own(name: str) -> Algorithm:
    found = import_named(name, "algorithm")
    if not isinstance(found, Algorithm):
        raise UsageError(
            f"The algorithm '{name}' is of type {type(found).__name__}; it must be an Algorithm of "
            "flatlab.federated.algorithms.base."
        )
    _require_hyper(name, found.hyper)
    _require_passes(name, found)
    for field in ("own", "server"):
        names = getattr(found, field)
        if not isinstance(names, tuple) or not all(
            isinstance(vector, str) and vector.isidentifier() for vector in names
        ):
            raise UsageError(f"The algorithm '{name}' has {field} = {names!r}: name its vectors in a tuple, as ('h',).")
        if len(set(names)) < len(names):
            raise UsageError(f"The algorithm '{name}' has {field} = {names!r}, which names a vector twice.")
    return found


def _require_passes(name: str, found: Algorithm) -> None:
    """Raise `UsageError` where its parts are not of their kinds, or exclude one another."""
    for each in fields(Algorithm):
        part = getattr(found, each.name)
        if isinstance(each.default, bool) and not isinstance(part, bool):
            raise UsageError(f"The algorithm '{name}' has {each.name} = {part!r}: it is True or False.")
        function = each.name == "combine" or callable(each.default) or (each.default is None and part is not None)
        if function and not callable(part):
            raise UsageError(f"The algorithm '{name}' has {each.name} = {part!r}: it is a function.")
    if found.ascent is not None and found.lookahead is not None:
        raise UsageError(
            f"The algorithm '{name}' has an ascent and a lookahead: its gradient is taken at one place, so give one "
            "of the two."
        )
    if found.during is not None and found.ascent is None:
        raise UsageError(f"The algorithm '{name}' has a during, which follows an ascent, and no ascent.")


def _require_hyper(name: str, hyper: Any) -> None:
    if not (isinstance(hyper, type) and issubclass(hyper, Hyper)):
        raise UsageError(
            f"The algorithm '{name}' has as its hyper a {type(hyper).__name__}; it must be a class that inherits from "
            "Hyper of flatlab.federated.algorithms.base."
        )
    for field, about in hyper.model_fields.items():
        if about.alias or about.validation_alias or about.serialization_alias:
            raise UsageError(f"The hyperparameter {field} of the algorithm '{name}' has an alias: leave that out.")
    try:
        require_plain(hyper().model_dump())
    except ValueError as error:
        reason = ": ".join(field_and_reason(error)) if isinstance(error, ValidationError) else str(error)
        raise UsageError(f"Hyperparameters of the algorithm '{name}' need defaults that fit: {reason}.") from error
