"""The first line of a table in text: what delimits it, and whether it names columns or is a row itself."""

import csv
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path

_DELIMITERS = ",;\t|"
_FEW = 8  # numbers of a row may well lie in order, as those of the first iris do


def delimiter_of(file: Path) -> str:
    """What stands between the names of the columns: a comma where there is but one name."""
    try:
        return csv.Sniffer().sniff(_first_record(file), _DELIMITERS).delimiter
    except csv.Error:  # one column, or none
        return ","


def names_of(file: Path, delimiter: str) -> list[str]:
    """The names of the columns as they are written, with the spaces around them."""
    return next(csv.reader([_first_record(file)], delimiter=delimiter), [])


def are_values(names: Sequence[str]) -> bool:
    """Whether a first line is one of values: all are numbers, or some are, and not as years or wavelengths follow."""
    numbers = [name for name in names if _is_number(name)]
    if len(numbers) < 2 or len(numbers) == len(names):
        return len(numbers) == len(names)
    steps = [float(b) - float(a) for a, b in pairwise(numbers)]
    in_order = all(step > 0 for step in steps) or all(step < 0 for step in steps)
    counted = all(name.isdecimal() for name in numbers) and len(set(steps)) == 1
    return not in_order or (len(numbers) < _FEW and not counted)


def _first_record(file: Path) -> str:
    """The names of the columns as they are written, on one line: Arrow skips lines that are empty, as `csv` does.

    A quoted name may have line breaks. What quotes a name depends on what delimits it, so the record ends where the
    delimiter for which it is longest says.
    """
    ends = []
    for delimiter in _DELIMITERS:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            records = csv.reader(lines, delimiter=delimiter)
            with suppress(csv.Error):  # a field of 128 KiB: many names that something else delimits
                next(filter(None, records), None)
            ends.append(records.line_num)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return " ".join("".join(islice(lines, max(ends))).strip("\r\n").splitlines())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
