"""Tables of numbers: CSV and Parquet files, and sets of the hub, without a column of images.

Every column but those of the labels and of the clients is an input. What would be a wrong number without a word is
refused: a file without a header would lose its first row to it, and the index that pandas writes says where a row
stood.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from flatlab.data.image_folder import SplitFiles
from flatlab.data.numbering import Labels, class_numbers, held_out, owner_numbers
from flatlab.data.rows import LABEL_NAMES, reason
from flatlab.data.samples import Sample, Source
from flatlab.data.table_header import are_values, delimiter_of, names_of
from flatlab.errors import UsageError, shown

Rows = NDArray[np.float64]

Scaled = tuple[Rows, Labels, Labels | None]
"""Inputs (n, columns), labels (n,) and the numbers of the clients' values (n,)."""

_NUMBERS = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_boolean,
    pa.types.is_null,  # a column that is empty: each of its values is missing
)


@dataclass(frozen=True)
class Tables:
    """What is stored of the splits, as Arrow has it."""

    train: Any
    test: Any | None = None  # None where a share of the training split is held out


def shows_images(features: Any) -> bool:
    """Whether a column of images is among the columns of the `datasets` library."""
    import datasets

    return any(isinstance(feature, datasets.Image) for feature in features.values())


def holds_rows(files: SplitFiles) -> bool:
    """Whether a split's files are tables, and none declares a column of images."""
    others = files.images or files.metadata or any(map(_may_show_images, files.parquet))
    return bool(files.tables) and not others


def _may_show_images(file: Path) -> bool:
    import datasets

    try:
        return shows_images(datasets.Features.from_arrow_schema(parquet.read_schema(file)))
    except Exception:  # whoever reads it as images says what is wrong with it
        return True


def read_files(source: Source, files: Sequence[Path]) -> Any:
    """One split's files, in their order, as one Arrow table of the columns of the first.

    Labels and clients in text stay as they are written, so that 01 and 1 are two.

    Raises:
        UsageError: a file is damaged, has no header, an unnamed column or one twice, other columns than the first, or a
            column of another type than those before it.
    """
    tables: list[Any] = []
    for file in files:
        try:
            table = parquet.read_table(file) if file.suffix.lower() == ".parquet" else _read_text(source, file)
        except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
            raise UsageError(f"{file} cannot be read: {reason(error)}.") from error
        _require_names(file, table.column_names)
        tables.append(_like(tables[0], table, str(file), str(files[0])) if tables else table)
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        _require_common_types(tables, files)
        raise


def _require_common_types(tables: Sequence[Any], files: Sequence[Path]) -> None:
    for name in tables[0].column_names:
        joined = tables[0].select([name])
        for table, file in zip(tables[1:], files[1:], strict=True):
            try:
                joined = pa.concat_tables([joined, table.select([name])], promote_options="permissive")
            except pa.ArrowException as error:
                raise UsageError(
                    f"{file} has in its column {name!r} what does not fit that of {files[0]} ({reason(error)}): write "
                    "the column in one way in all files."
                ) from error


def _read_text(source: Source, file: Path) -> Any:
    delimiter = delimiter_of(file)
    spoken = (*((source.reading.label,) if source.reading.label else LABEL_NAMES), source.reading.column)
    words = {name: pa.string() for name in names_of(file, delimiter) if name.strip() in spoken}
    table = arrow_csv.read_csv(
        file,
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(column_types=words),
    )
    if are_values(table.column_names):
        raise UsageError(f"{file} begins with numbers: give its columns names, in a first line.")
    return table.rename_columns([name.strip() for name in table.column_names])


def _require_names(file: Path, names: Sequence[str]) -> None:
    for place, name in enumerate(names, 1):
        if not name.strip() or name.startswith("__index_level_"):
            raise UsageError(
                f"{file} has no name for its column {place}: name it, or leave it out if it counts the rows "
                "(index=False in pandas)."
            )
        if name in names[: place - 1]:
            raise UsageError(f"{file} has two columns {name!r}: name each once.")


def _like(first: Any, table: Any, name: str, other: str) -> Any:
    """`table` with its columns in the order of `first`, whose names it must have."""
    if differing := sorted(set(first.column_names) ^ set(table.column_names)):
        raise UsageError(f"{name} has other columns than {other}: {differing[0]!r} is in one of them alone.")
    return table.select(first.column_names)


def read_rows(source: Source, stored: Tables) -> tuple[Scaled, Scaled, int]:
    """Make of the training split and, unless a share is held out, the test split inputs, labels and owners.

    Inputs are brought to mean 0 and standard deviation 1 over the training rows, column by column; a column that does
    not vary there becomes 0 there. Sums are rounded once, so that every machine finds the same numbers.

    Returns ((n, columns), (n,), (n,) or None where no column of clients is named) of training, and of testing, and the
    number of classes.

    Raises:
        UsageError: there is no column of labels, or none of inputs, or an input is missing, infinite or no number.
    """
    source.reading.require_only(("label", "configuration", "holdout", "column"), str(source))
    tables = [stored.train]
    if stored.test is not None:
        tables.append(_tested(source, stored.train, stored.test))
    label = _label_column(source, tables[0].column_names)
    columns = [name for name in tables[0].column_names if name not in (label, source.reading.column)]
    if not columns:
        raise UsageError(f"{source} has labels, and no other column to tell them from.")
    called = ("training", "test")
    labels = _as_written([table[label] for table in tables])
    parts = [
        (_samples(source, split, table, own), _numbers(source, split, table, columns))
        for split, table, own in zip(called, tables, labels, strict=False)
    ]
    if source.reading.holdout is not None:
        ((samples, inputs),) = parts
        chosen = held_out(source, source.reading.holdout, samples, range(len(samples)))
        parts = [(part, inputs[places]) for part, places in chosen]
    for split, (samples, _) in zip(called, parts, strict=True):
        if not samples:
            raise UsageError(f"{source} has no row in its {split} split.")
    (train, inputs), (test, tested) = parts
    numbers, test_numbers, classes = class_numbers(source, None, train, test)
    owners = None if source.reading.column is None else owner_numbers(source, train)
    mean, deviation = np.array([_scale(source, name, inputs[:, k]) for k, name in enumerate(columns)]).T
    return ((inputs - mean) / deviation, numbers, owners), ((tested - mean) / deviation, test_numbers, None), classes


def _tested(source: Source, train: Any, test: Any) -> Any:
    """The test split with the training split's columns, but for that of the clients if it has none."""
    column = source.reading.column
    if column in train.column_names and column not in test.column_names:
        train = train.drop_columns([column])
    return _like(train, test, f"The test split of {source}", "its training split")


def _label_column(source: Source, names: Sequence[str]) -> str:
    for field, name in (("label_column", source.reading.label), ("partition_column", source.reading.column)):
        if name is not None and name not in names:
            raise UsageError(f"{source} has no column {name!r} ({field}), but only {', '.join(names)}.")
    if source.reading.label is not None:
        return source.reading.label
    found = [name for name in LABEL_NAMES if name in names]
    if len(found) != 1:
        raise UsageError(
            f"{source} has {' and '.join(found) or 'no column'} that could be its labels: name that column "
            f"(label_column), one of {', '.join(names)}."
        )
    return found[0]


def _samples(source: Source, split: str, table: Any, labels: Sequence[Any]) -> list[Sample]:
    column = source.reading.column
    owners = _as_written([table[column]])[0] if column in table.column_names else [None] * len(labels)
    rows = enumerate(zip(labels, owners, strict=True), 1)
    return [Sample(b"", value, f"Row {row} of the {split} split of {source}", owner) for row, (value, owner) in rows]


def _as_written(columns: Sequence[Any]) -> list[list[Any]]:
    """The values of a column in each split.

    Words are whole numbers where all of them, in all splits of words, are written so, and missing where nothing is.
    """
    splits = [column.to_pylist() for column in columns]
    worded = [all(isinstance(value, str) for value in values) for values in splits]
    words = [[value.strip() or None for value in values] for values, are in zip(splits, worded, strict=True) if are]
    whole = all(word and _is_whole(word) for split in words for word in split)
    read: list[list[Any]] = [[int(word) for word in split if word] for split in words] if whole else [*words]
    written = iter(read)
    return [next(written) if are else values for values, are in zip(splits, worded, strict=True)]


def _is_whole(word: str) -> bool:
    return word.removeprefix("-").isdecimal() and str(int(word)) == word


def _numbers(source: Source, split: str, table: Any, columns: Sequence[str]) -> Rows:
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


def _scale(source: Source, name: str, values: Rows) -> tuple[float, float]:
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
