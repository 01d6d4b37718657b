"""Samples in rows: Parquet files, and whatever else the `datasets` library opens."""

from collections.abc import Iterator, Sequence
from glob import escape
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
from pyarrow import parquet

from flatlab.data.pixels import Encoded
from flatlab.data.samples import Sample, Samples, Source
from flatlab.errors import UsageError

LABEL_NAMES = ("label", "labels", "fine_label", "class")
"""Columns taken for the label, in this order, when several or none are declared as class labels."""

BATCH = 500
"""Rows read at a time; one by one is three times slower."""

Columns = tuple[str, str, tuple[str, ...] | None, str | None]
"""The columns of images and of labels, the classes' names where declared, the column of clients if asked for."""


def parquet_samples(source: Source, split: str, files: Sequence[Path]) -> Samples:
    """The rows of the Parquet files of one split, called "training" or "test", in the order of `files`.

    Raises:
        UsageError: a file is damaged or has no images or labels, or two of them declare different classes.
    """
    import datasets

    rows = 0
    columns: list[Columns] = []
    for file in files:
        try:
            rows += parquet.read_metadata(file).num_rows
            features = datasets.Features.from_arrow_schema(parquet.read_schema(file))
        except Exception as error:
            raise UsageError(f"{file} is not a whole Parquet file: {reason(error)}.") from error
        columns.append(find_columns(source, features, split))
        if columns[-1] != columns[0]:
            raise UsageError(f"{file} has other columns, or other classes in another order, than {files[0]}.")
    image, label, _, owner = columns[0]
    streams = (_rows_of(file, image, label, owner) for file in files)
    return Samples(chain.from_iterable(streams), rows, columns[0][2], columns[0][1])


def _rows_of(file: Path, image: str, label: str, owner: str | None) -> Iterator[Sample]:
    row = 0
    try:
        wanted = dict.fromkeys((image, label, owner or label))
        for batch in parquet.ParquetFile(file).iter_batches(BATCH, columns=[*wanted]):
            owners = batch[owner].to_pylist() if owner else [None] * len(batch)
            for stored, number, held_by in zip(batch[image].to_pylist(), batch[label].to_pylist(), owners, strict=True):
                row += 1
                content = encoded(stored, f"The image in row {row} of {file}")
                yield Sample(content, number, f"row {row} of {file}", held_by)
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"{file} cannot be read: {reason(error)}.") from error


def load_files(source: Source, folder: Path, files: Sequence[Sequence[Path]]) -> tuple[Samples, ...]:
    """Open the splits' files as whatever `datasets` takes them for, without copying them into its cache.

    `files` are those of the training split and, if it is read, the test split.

    Raises:
        UsageError: the library cannot open them, or they hold no images or no labels.
    """
    import datasets

    patterns = {
        split: [escape(str(file)) for file in part] for split, part in zip(("train", "test"), files, strict=False)
    }
    try:
        splits = datasets.load_dataset(str(folder), data_files=patterns, streaming=True)
    except Exception as error:
        raise unreadable(source, error) from error
    called = {"train": "training", "test": "test"}
    return tuple(loaded_samples(source, called[split], splits[split]) for split in patterns)


def loaded_samples(source: Source, split: str, rows: Any) -> Samples:
    """The rows of one split, called "training" or "test", as `datasets` has opened it.

    Raises:
        UsageError: there are no images or no labels.
    """
    import datasets

    image, label, classes, owner = find_columns(source, rows.features, split)
    undecoded = rows.cast_column(image, datasets.Image(decode=False))

    def stream() -> Iterator[Sample]:
        row = 0
        try:
            for batch in undecoded.iter(batch_size=BATCH):
                owners = batch[owner] if owner else [None] * len(batch[label])
                for stored, number, held_by in zip(batch[image], batch[label], owners, strict=True):
                    row += 1
                    name = f"image {row} of the {split} split of {source}"
                    content = encoded(stored, name)
                    yield Sample(content, number, str(content) if isinstance(content, Path) else name, held_by)
        except UsageError:
            raise
        except Exception as error:
            raise unreadable(source, error) from error

    return Samples(stream(), getattr(rows, "num_rows", None), classes, label)


def find_columns(source: Source, features: Any, split: str = "training") -> Columns:
    """Find the columns by their declared types, that of the labels by its name if need be.

    Clients are those of the training split: another need not have their column.
    """
    import datasets

    features = features or {}  # None where only reading would tell, which is never so for images
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(images) != 1:
        found = ", ".join(images) or "none: numbers are read from CSV and Parquet files"
        raise UsageError(f"{source} must have one column of images, but has {found}.")
    for field, name in (("label_column", source.reading.label), ("partition_column", source.reading.column)):
        needed = split == "training" or field == "label_column"
        if name is not None and name not in features and needed:
            raise UsageError(f"{source} has no column {name!r} ({field}), but only {', '.join(features)}.")
    owner = source.reading.column if source.reading.column in features else None
    could_be = {n for n, feature in features.items() if n in LABEL_NAMES or isinstance(feature, datasets.ClassLabel)}
    others = {name: feature for name, feature in features.items() if name != owner or could_be == {owner}}
    labels = [name for name, feature in others.items() if isinstance(feature, datasets.ClassLabel)]
    called = [name for name in LABEL_NAMES if name in others]
    if source.label in features:
        labels = [str(source.label)]
    elif len(labels) != 1:
        labels = called
    elif set(called) - set(labels):
        raise UsageError(
            f"{source} has {' and '.join([*labels, *(set(called) - set(labels))])} that could be its labels: name that "
            "column (label_column)."
        )
    if not labels:
        raise UsageError(
            f"{source} has no column of labels (called {' or '.join(LABEL_NAMES)}), but only {', '.join(features)}."
        )
    feature = features[labels[0]]
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    return images[0], labels[0], names, owner


def encoded(stored: Any, name: str) -> Encoded:
    """What a row holds of an image: a structure of bytes and path, or one of the two alone."""
    content, path = (stored.get("bytes"), stored.get("path")) if isinstance(stored, dict) else (stored, None)
    if isinstance(content, bytes):
        return content
    path = content if isinstance(content, str) else path
    if not path:
        raise UsageError(f"{name} is missing: give the row an image, or remove it.")
    return Path(path)


def unreadable(source: Source, error: Exception) -> UsageError:
    """The sentence for what the libraries raise."""
    return UsageError(f"{source} cannot be read: {reason(error)}.")


def reason(error: BaseException) -> str:
    """Give the first sentence of the error at the root of `error`, which the libraries wrap in general ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".:")
