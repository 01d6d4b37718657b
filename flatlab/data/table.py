"""Tables of numbers: CSV and Parquet files, and sets of the hub, without a column of images.

Every column but those of the labels and of the clients is an input. What would be a wrong number without a word is
refused: a file without a header would lose its first row to it, and the index that pandas writes says where a row
stood.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from flatlab.data.image_folder import SplitFiles
from flatlab.data.numbering import Labels, class_numbers, held_out, owner_numbers
from flatlab.data.rows import LABEL_NAMES, reason
from flatlab.data.samples import Sample, Source
from flatlab.data.table_header import are_values, delimiter_of, names_of
from flatlab.data.table_numbers import Rows, is_beyond_integers, is_whole, numbers_of, scale_of
from flatlab.errors import UsageError

Scaled = tuple[Rows, Labels, Labels | None]
"""Inputs (n, columns), labels (n,) and the numbers of the clients' values (n,)."""


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
    parsing = arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)

    def read(types: Mapping[str, Any], columns: Sequence[str] = ()) -> Any:
        options = arrow_csv.ConvertOptions(column_types=types, include_columns=columns)
        return arrow_csv.read_csv(file, parse_options=parsing, convert_options=options)

    table = read(words)
    large = [name for name, column in zip(table.column_names, table.columns, strict=True) if is_beyond_integers(column)]
    for name in large if len(set(large)) == len(large) else ():
        if all(is_whole(word.strip()) for word in read({name: pa.string()}, [name])[name].to_pylist() if word):
            raise UsageError(
                f"{file} has in its column {name!r} whole numbers beyond 2^63, which lose their digits: leave the "
                "column out, or subtract what they have in common."
            )
    if are_values(table.column_names):
        raise UsageError(f"{file} begins with numbers: give its columns names, in a first line.")
    return table.rename_columns([name.strip() for name in table.column_names])


def _require_names(file: Path | Source, names: Sequence[str]) -> None:
    for place, name in enumerate(names, 1):
        if not name.strip() or name.startswith("__index_level_") or _UNNAMED.fullmatch(name):
            raise UsageError(
                f"{file} has no name for its column {place}: name it, or leave it out if it counts the rows "
                "(index=False in pandas)."
            )
        if name in names[: place - 1]:
            raise UsageError(f"{file} has two columns {name!r}: name each once.")


_UNNAMED = re.compile(r"Unnamed: [0-9]+")
"""How pandas calls a column without a name, as that of its own row numbers after one way out and back."""


def _like(first: Any, table: Any, name: str, other: str) -> Any:
    """`table` with its columns in the order of `first`, whose names it must have."""
    if differing := sorted(set(first.column_names) ^ set(table.column_names)):
        raise UsageError(f"{name} has other columns than {other}: {differing[0]!r} is in one of them alone.")
    return table.select(first.column_names)


def read_rows(source: Source, stored: Tables) -> tuple[Scaled, Scaled, int]:
    """Make of the training split and, unless a share is held out, the test split inputs, labels and owners.

    Inputs are brought to mean 0 and standard deviation 1 over the training rows, column by column; a column that does
    not vary there becomes 0, in the test too: nothing was learnt of it. Sums are rounded once, so that every machine
    finds the same numbers.

    Returns ((n, columns), (n,), (n,) or None where no column of clients is named) of training, and of testing, and the
    number of classes.

    Raises:
        UsageError: there is no column of labels, or none of inputs, or an input is missing, infinite or no number.
    """
    source.reading.require_only(("label", "configuration", "holdout", "column"), str(source))
    for table in (stored.train, stored.test):
        _require_names(source, () if table is None else table.column_names)
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
        (_samples(source, split, table, own), numbers_of(source, split, table, columns))
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
    mean, deviation = np.array([scale_of(source, name, inputs[:, k]) for k, name in enumerate(columns)]).T
    tested = np.where(inputs.min(0) == inputs.max(0), mean, tested)
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
    whole = all(word and is_whole(word) for split in words for word in split)
    read: list[list[Any]] = [[int(word) for word in split if word] for split in words] if whole else [*words]
    written = iter(read)
    return [next(written) if are else values for values, are in zip(splits, worded, strict=True)]
