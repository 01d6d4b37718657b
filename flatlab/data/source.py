"""Reading a data set from where it lies: its two splits, decoded, with labels that are class numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flatlab.data.folder import by_split, class_folders, split_files
from flatlab.data.hub import open_hub
from flatlab.data.pixels import DeepPixels, Pixels, decode, eight_bits
from flatlab.data.rows import load_files, loaded_samples, parquet_samples, unreadable
from flatlab.data.samples import Sample, Samples, Source
from flatlab.errors import UsageError

Labels = NDArray[np.int64]

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Decoded:
    """Images of one split, all of one size, with labels that are class numbers."""

    images: list[Pixels]  # n arrays, each (height, width) or (height, width, 3)
    labels: Labels  # (n,)


def read(source: Source) -> tuple[Decoded, Decoded, int]:
    """Decode the training split and the test (or else validation) split; returns (train, test, number of classes).

    Raises:
        UsageError: whatever keeps the data set from being read, in one sentence.
    """
    train, test = _open_folder(source, source.folder) if source.folder else _open_from_hub(source)
    if test.classes not in (None, train.classes):  # plain numbers are taken for positions among the declared classes
        raise UsageError(f"{source} has a test split with other classes, or in another order, than its training split.")
    total = None if train.count is None or test.count is None else train.count + test.count
    with _progress() as progress:
        task = progress.add_task(f"decoding {source.name}", total=total)
        advance = partial(progress.advance, task)
        (train_samples, train_images), (test_samples, test_images) = (_decoded(part, advance) for part in (train, test))
    if not (train_images and test_images):
        raise UsageError(f"{source} has {len(train_images)} training and {len(test_images)} test images.")
    _require_apart(train_samples, test_samples)
    _require_one_size(source, train_samples + test_samples, train_images + test_images)
    images = eight_bits(train_images + test_images, str(source))
    train_labels, test_labels, classes = _class_numbers(source, train.classes, train_samples, test_samples)
    split = len(train_images)
    return Decoded(images[:split], train_labels), Decoded(images[split:], test_labels), classes


def _open_folder(source: Source, folder: Path) -> tuple[Samples, Samples]:
    try:
        train, test = _train_and_test(source, split_files(folder))
    except OSError as error:
        raise unreadable(source, error) from error
    parts = (train, test)
    if any(part.parquet and part.images for part in parts):
        raise UsageError(f"{source} holds both Parquet files and images in a split: keep one of the two kinds there.")
    if all(part.parquet for part in parts):
        return parquet_samples(source, train.parquet), parquet_samples(source, test.parquet)
    if all(part.images and part.folder and not part.metadata for part in parts):
        return class_folders(train, test)
    return load_files(source, folder, train.files, test.files)


def _open_from_hub(source: Source) -> tuple[Samples, Samples]:
    splits = open_hub(source)
    train, test = _train_and_test(
        source, {split: splits[name] for split, name in by_split(splits, str(source)).items()}
    )
    return loaded_samples(source, "training", train), loaded_samples(source, "test", test)


def _train_and_test(source: Source, splits: Mapping[str, _Part]) -> tuple[_Part, _Part]:
    train = splits.get("train")
    test = splits.get("test", splits.get("validation"))
    if train is None or test is None:
        raise UsageError(
            f"{source} needs a split called train and one called test or validation, but has "
            f"{', '.join(splits) or 'none'}: "
            "name its files train-*.parquet and test-*.parquet, or its folders train/ and test/."
        )
    return train, test


def _decoded(samples: Samples, advance: Callable[[int], None]) -> tuple[list[Sample], list[DeepPixels]]:
    """Decode every image; the samples that are returned with the pixels have given up their bytes."""
    kept, images = [], []
    for sample in samples.stream:
        images.append(decode(sample.image, sample.name))
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
            f"({one.name}, {other.name}): scale them to one size first."
        )


def _class_numbers(
    source: Source, classes: Sequence[str] | None, train: Sequence[Sample], test: Sequence[Sample]
) -> tuple[Labels, Labels, int]:
    """Number the classes as the data set declares them, or else in the sorted order of the training labels."""
    splits = [[_label(sample) for sample in split] for split in (train, test)]
    kinds = {type(label) for labels in splits for label in labels}
    if len(kinds) > 1:
        raise UsageError(f"{source} has names and whole numbers as labels: choose one of them for both splits.")
    values = sorted(set(splits[0])) if classes is None else range(len(classes))
    number = {value: place for place, value in enumerate(values)}
    for what, labels in zip(("training", "test"), splits, strict=True):
        unknown = next((label for label in labels if label not in number), None)
        if unknown is not None:
            raise UsageError(
                f"{source} has the label {unknown} in its {what} split, which is none of its {len(number)} classes."
            )
    numbers = [np.array([number[label] for label in labels], dtype=np.int64) for labels in splits]
    return numbers[0], numbers[1], len(number)


def _label(sample: Sample) -> int | str:
    if not isinstance(sample.label, int | str):
        raise UsageError(f"{sample.name} has a label that is neither a whole number nor a name: {sample.label}.")
    return sample.label if isinstance(sample.label, str) else int(sample.label)  # a truth value is a number


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
