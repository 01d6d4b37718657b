"""Reading a data set from where it lies: its two splits, decoded, with labels that are class numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flatlab.data.hub import open_hub
from flatlab.data.image_folder import SplitFiles, by_split, class_folders, split_files, visible_files
from flatlab.data.known import KNOWN
from flatlab.data.numbering import Labels, class_numbers, held_out, owner_numbers
from flatlab.data.pixels import DeepPixels, Pixels, decode, eight_bits, scaled
from flatlab.data.rows import load_files, loaded_samples, parquet_samples, unreadable
from flatlab.data.samples import Sample, Samples, Source
from flatlab.data.table import Tables, holds_rows, read_files, read_rows, shows_images
from flatlab.data.table_numbers import Rows
from flatlab.errors import UsageError

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Decoded:
    """Images of one split, all of one size, with labels that are class numbers."""

    images: list[Pixels] | Rows  # n arrays, each (height, width) or (height, width, 3); or rows (n, columns), scaled
    labels: Labels  # (n,)
    owners: Labels | None = None  # (n,) number of each sample's value in the column of clients, if one is asked for


def read(source: Source) -> tuple[Decoded, Decoded, int]:
    """Decode the training split and the test (or else validation) split; returns (train, test, number of classes).

    Where a share is to be held out, the test split is drawn from the training split, class by class, and a test split
    that is there is not read.

    Raises:
        UsageError: whatever keeps the data set from being read, in one sentence.
    """
    try:
        opened = _open_folder(source, source.folder) if source.folder else _open_from_hub(source)
        if isinstance(opened, Tables):
            train, test, classes = read_rows(source, opened)
            return Decoded(*train), Decoded(*test), classes
        return _read_images(source, opened)
    except OSError as error:  # of a folder; whoever opens a file names it
        raise unreadable(source, error) from error


def _read_images(source: Source, splits: Sequence[Samples]) -> tuple[Decoded, Decoded, int]:
    reading = source.reading
    train, test = splits[0], splits[-1]
    if test.classes not in (None, train.classes):  # plain numbers are taken for positions among the declared classes
        raise UsageError(f"{source} has a test split with other classes, or in another order, than its training split.")
    if test.label != train.label:
        raise UsageError(
            f"{source} would take its labels from the column {train.label!r} in the training split and from "
            f"{test.label!r} in the test split: name one that both have (label_column)."
        )
    counts = [part.count for part in splits]
    with _progress() as progress:
        total = None if None in counts else sum(count or 0 for count in counts)
        task = progress.add_task(f"decoding {source.name}", total=total)
        advance = partial(progress.advance, task)
        decoded = [_decoded(part, reading.size, advance) for part in splits]
    if reading.holdout is not None:
        decoded = held_out(source, reading.holdout, *decoded[0])
    (train_samples, train_images), (test_samples, test_images) = decoded
    if not (train_images and test_images):
        raise UsageError(f"{source} has {len(train_images)} training and {len(test_images)} test images.")
    _require_apart(train_samples, test_samples)
    _require_one_size(source, train_samples + test_samples, train_images + test_images)
    images = eight_bits(train_images + test_images, str(source))
    train_labels, test_labels, classes = class_numbers(source, train.classes, train_samples, test_samples)
    split = len(train_images)
    owners = None if reading.column is None else owner_numbers(source, train_samples)
    return Decoded(images[:split], train_labels, owners), Decoded(images[split:], test_labels), classes


def _open_folder(source: Source, folder: Path) -> tuple[Samples, ...] | Tables:
    """The training split and, unless a share is held out, the test split; `folder` may be a file, the former."""
    if source.reading.configuration is not None:
        raise UsageError(f"{source} is no data set of the hub: leave hub_config out.")
    if folder.is_file() and source.reading.holdout is None:
        raise UsageError(f"{source} is one file, with nothing to test on: hold out a share of it (holdout).")
    splits = split_files(folder)
    if not splits and source.reading.holdout is not None:  # it is one split, and needs no name
        splits = {"train": SplitFiles(folder, tuple(visible_files(folder)))}
    parts = _train_and_test(source, splits)
    for part in parts:
        kinds = sorted({file.suffix.lower() for file in part.tables})
        if len(kinds) > 1:
            raise UsageError(
                f"{source} holds {' and '.join(kinds)} files in one split, which may be the same rows twice: keep one "
                "of the kinds there."
            )
    if source.name not in KNOWN and all(holds_rows(part) for part in parts):
        return Tables(*(read_files(source, part.tables) for part in parts))
    called = ("training", "test")
    if any(part.parquet and part.images for part in parts):
        raise UsageError(f"{source} holds both Parquet files and images in a split: keep one of the two kinds there.")
    if all(part.parquet for part in parts):
        return tuple(parquet_samples(source, what, part.parquet) for what, part in zip(called, parts, strict=False))
    if all(part.images and part.folder and not part.metadata for part in parts):
        source.reading.require_only(("holdout", "size"), str(source))
        return class_folders(*parts)
    described = [part.metadata for part in parts if part.metadata]
    if described and len(described) < len(parts):
        raise UsageError(
            f"{source} has {described[0][0]}, and no such file for its other split: describe both, or neither."
        )
    return load_files(source, folder, [part.files for part in parts])


def _open_from_hub(source: Source) -> tuple[Samples, ...] | Tables:
    splits = open_hub(source)
    parts = _train_and_test(source, {split: splits[name] for split, name in by_split(splits, str(source)).items()})
    if source.name not in KNOWN and not any(shows_images(part.features) for part in parts):
        return Tables(*(part.with_format("arrow")[:] for part in parts))
    return tuple(loaded_samples(source, what, part) for what, part in zip(("training", "test"), parts, strict=False))


def _train_and_test(source: Source, splits: Mapping[str, _Part]) -> tuple[_Part, ...]:
    train = splits.get("train")
    if train is not None and source.reading.holdout is not None:
        return (train,)
    test = splits.get("test", splits.get("validation"))
    if train is None or test is None:
        raise UsageError(
            f"{source} needs a split called train and one called test or validation, but has "
            f"{', '.join(splits) or 'none'}: "
            "name its files train-*.parquet and test-*.parquet (or .csv), or its folders train/ and test/, or hold out "
            "a share of the training split (holdout)."
        )
    return train, test


def _decoded(
    samples: Samples, size: int | None, advance: Callable[[int], None]
) -> tuple[list[Sample], list[DeepPixels]]:
    """Decode every image, and scale it to `size`; the samples that are returned have given up their bytes."""
    kept, images = [], []
    for sample in samples.stream:
        image = decode(sample.image, sample.name)
        images.append(image if size is None else scaled(image, size))
        kept.append(sample if isinstance(sample.image, Path) else replace(sample, image=b""))
        advance(1)
    return kept, images


def _require_apart(train: Sequence[Sample], test: Sequence[Sample]) -> None:
    """No image's file may be in both splits, be it by two links or by a loader's mistake."""
    identities = {_identity(sample.image): sample for sample in train if isinstance(sample.image, Path)}
    for sample in test:
        if isinstance(sample.image, Path) and (twin := identities.get(_identity(sample.image))):
            raise UsageError(
                f"{twin.name} in the training split and {sample.name} in the test split are one file: "
                "a model must not be tested on what it was trained on."
            )


def _identity(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_dev, status.st_ino


def _require_one_size(source: Source, samples: Sequence[Sample], images: Sequence[DeepPixels]) -> None:
    first: dict[tuple[int, ...], Sample] = {}
    for sample, image in zip(samples, images, strict=True):
        first.setdefault(image.shape[:2], sample)
    if len(first) > 1:
        (small, one), (large, other) = min(first.items()), max(first.items())
        raise UsageError(
            f"{source} has images of {len(first)} sizes, from {small[0]} x {small[1]} to {large[0]} x {large[1]} "
            f"({one.name}, {other.name}): scale them to one size first, or name one (image_size)."
        )


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
