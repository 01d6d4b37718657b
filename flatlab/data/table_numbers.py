"""Columns of a table as numbers: none missing, none that lost digits, and how they are scaled."""

from collections.abc import Sequence
from math import fsum, sqrt
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv

from flatlab.data.samples import Source
from flatlab.errors import UsageError, shown

Rows = NDArray[np.float64]

_NUMBERS = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_boolean,
    pa.types.is_null,  # a column that is empty: each of its values is missing
)


def is_beyond_integers(column: Any) -> bool:
    """Whether some of its floats may be whole numbers too large for integers, of which Arrow makes floats."""
    return bool(pa.types.is_floating(column.type) and (np.abs(column.drop_null().to_numpy()) >= 2.0**63).any())


def is_whole(word: str) -> bool:
    """Whether it is how a whole number is written."""
    return word.removeprefix("-").isdecimal() and str(int(word)) == word


def numbers_of(source: Source, split: str, table: Any, columns: Sequence[str]) -> Rows:
    """The columns side by side; raises `UsageError` for what is no finite number, or lost digits as one."""
    found = np.empty((len(table), len(columns)))
    if not len(table):
        return found
    for place, name in enumerate(columns):
        column = table[name]
        if not any(is_kind(column.type) for is_kind in _NUMBERS):
            row, value = _no_number(column)
            raise UsageError(
                f"{source} has in its column {name!r} what is no number ({shown(value)} in row {row} of the {split} "
                f"split, the column being of the type {column.type}): make numbers of it, leave the column out, or "
                "return tensors from a function."
            )
        if pa.types.is_integer(column.type) and _loses_digits(column):
            raise UsageError(
                f"{source} has in its column {name!r} whole numbers beyond 2^53, which float64 does not tell apart: "
                "leave the column out, or subtract what they have in common."
            )
        found[:, place] = column.cast(pa.float64(), safe=False).to_numpy()
        missing = np.flatnonzero(~np.isfinite(found[:, place]))
        if len(missing):
            raise UsageError(
                f"Row {missing[0] + 1} of the {split} split of {source} has no finite number in its column {name!r} "
                f"({len(missing)} of {len(table)} rows): fill them in, or leave the rows or the column out."
            )
    return found


def _no_number(column: Any) -> tuple[int, Any]:
    """Row and value of the first that is no number; in a column that only its type makes none, the first there is."""
    values = list(enumerate(column.to_pylist(), 1))
    missing = arrow_csv.ConvertOptions().null_values
    there = [(row, value) for row, value in values if value is not None and value not in missing]
    words = [(row, value) for row, value in there if not (isinstance(value, str) and _is_read_as_number(value))]
    return (words or there or values)[0]


def _is_read_as_number(text: str) -> bool:
    """As Arrow does, which takes no 1_000."""
    try:
        pa.scalar(text.strip()).cast(pa.float64())
    except pa.ArrowException:
        return False
    return True


def scale_of(source: Source, name: str, values: Rows) -> tuple[float, float]:
    """Mean and deviation of one column; the deviation of what does not vary is 1."""
    if values.min() == values.max():
        return float(values[0]), 1.0
    try:
        mean = fsum(values.tolist()) / len(values)
        with np.errstate(over="ignore"):  # it is refused below
            squares = (values - mean) ** 2
        deviation = sqrt(fsum(squares.tolist()) / len(values))
    except OverflowError:
        deviation = float("inf")
    if not 0 < deviation < float("inf"):
        raise UsageError(f"{source} has numbers in its column {name!r} that lie too far apart, or too close, to scale.")
    return mean, deviation


def _loses_digits(column: Any) -> bool:
    try:
        column.cast(pa.float64(), safe=True)
    except pa.ArrowInvalid:
        return True
    return False
