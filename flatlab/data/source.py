"""Reading a data set through the `datasets` library, from a local folder or from the Hugging Face hub."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flatlab.data.known import KNOWN
from flatlab.errors import UsageError

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

LABEL_NAMES = ("label", "labels", "fine_label", "class")
"""Columns taken for the label, in this order, when several or none are declared as class labels."""

BATCH = 500
"""Images decoded at a time; the library is three times slower one by one."""

HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub's first answer."""


@dataclass(frozen=True)
class Source:
    """A data set that has been located and not yet read."""

    name: str  # as the user knows it
    folder: Path | None  # where its files lie; None: on the hub
    looked_in: tuple[Path, ...]  # folders where it could have lain
    hub: str  # organisation/name on the hub
    label: str | None  # column of the labels, where there is one of this name; else it is found out

    def __str__(self) -> str:
        return f"The data set in {self.folder}" if self.folder else f"The hub's data set {self.hub}"


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
    splits, total = _open_folder(source, source.folder) if source.folder else _open_hub(source)
    train, test = _train_and_test(source, splits)
    image, label = _columns(source, train.features)
    with _progress() as progress:
        task = progress.add_task(f"decoding {source.name}", total=total)
        advance = partial(progress.advance, task)
        train_images, train_labels = _decoded(source, train, image, label, advance)
        test_images, test_labels = _decoded(source, test, image, label, advance)
    if not (train_images and test_images):
        raise UsageError(f"{source} has {len(train_images)} training and {len(test_images)} test images.")
    _require_one_size(source, train_images + test_images)
    train_numbers, test_numbers, classes = _class_numbers(train.features[label], train_labels, test_labels, source)
    return Decoded(train_images, train_numbers), Decoded(test_images, test_numbers), classes


def _open_folder(source: Source, folder: Path) -> tuple[Any, int | None]:
    """Open without copying (the library would else build a second cache); returns (splits, number of images)."""
    import datasets

    rows = sum(map(_parquet_rows, folder.rglob("*.parquet")))
    try:
        return datasets.load_dataset(str(folder), streaming=True), rows or None
    except Exception as error:
        raise _unreadable(source, error) from error


def _parquet_rows(file: Path) -> int:
    from pyarrow import parquet  # type: ignore[import-untyped]

    try:
        return int(parquet.read_metadata(file).num_rows)
    except Exception as error:
        raise UsageError(f"{file} is not a whole Parquet file: {_reason(error)}.") from error


def _open_hub(source: Source) -> tuple[Any, int | None]:
    import datasets

    _require_reachable(source)
    try:
        splits = datasets.load_dataset(source.hub)
    except ConnectionError as error:
        raise _not_found(source, f"it cannot be reached: {_reason(error)}") from error
    except Exception as error:
        raise _unreadable(source, error) from error
    return splits, sum(splits.num_rows.values())


def _require_reachable(source: Source) -> None:
    """Ask the hub once, briefly: the library itself would retry for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().dataset_info(source.hub, timeout=HUB_TIMEOUT)
    except OfflineModeIsEnabled:
        return  # asked for by HF_HUB_OFFLINE: the library may have the data in its own cache
    except HFValidationError as error:
        raise UsageError(
            f"'{source.name}' is neither a folder nor the name of a data set: name a folder of Parquet files or "
            f"images, one of digits, {', '.join(KNOWN)}, or a data set of the Hugging Face hub (organisation/name)."
        ) from error
    except RepositoryNotFoundError as error:
        raise _not_found(source, "there is none of this name") from error
    except Exception as error:
        raise _not_found(source, f"it cannot be reached: {_reason(error)}") from error


def _not_found(source: Source, reason: str) -> UsageError:
    looked = f"in {' or '.join(map(str, source.looked_in))}" if source.looked_in else "locally (no folder was given)"
    return UsageError(
        f"The data set '{source.name}' was found neither {looked} nor on the Hugging Face hub as '{source.hub}' "
        f"({reason}): connect to the internet, or put its Parquet files into a folder {source.name} and give the "
        "folder around that with --data-root or FLATLAB_DATA."
    )


def _train_and_test(source: Source, splits: Any) -> tuple[Any, Any]:
    train = splits.get("train")
    test = splits.get("test", splits.get("validation"))
    if train is None or test is None:
        raise UsageError(
            f"{source} needs a split called train and one called test or validation, but has {', '.join(splits)}: "
            "name its files train-*.parquet and test-*.parquet, or its folders train/ and test/."
        )
    return train, test


def _columns(source: Source, features: Any) -> tuple[str, str]:
    """Find the columns of the images and of the labels by their declared types, the label by its name if need be."""
    import datasets

    features = features or {}  # None where only reading would tell, which is never so for images
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(images) != 1:
        raise UsageError(f"{source} must have one column of images, but has {', '.join(images) or 'none'}.")
    if source.label is not None and source.label in features:
        return images[0], source.label
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(labels) != 1:
        labels = [name for name in LABEL_NAMES if name in features]
    if not labels:
        raise UsageError(
            f"{source} has no column of labels (called {' or '.join(LABEL_NAMES)}), but only {', '.join(features)}."
        )
    return images[0], labels[0]


def _decoded(
    source: Source, split: Any, image: str, label: str, advance: Callable[[int], None]
) -> tuple[list[Pixels], list[Any]]:
    images: list[Pixels] = []
    labels: list[Any] = []
    try:
        for batch in split.iter(batch_size=BATCH):
            images += map(_pixels, batch[image])
            labels += batch[label]
            advance(len(batch[label]))
    except UnidentifiedImageError as error:
        raise UsageError(
            f"{source} has an image that cannot be decoded, soon after the first {len(images)}."
        ) from error
    except Exception as error:
        raise _unreadable(source, error) from error
    return images, labels


def _pixels(image: Any) -> Pixels:
    """Turn a PIL image into (height, width) if it is grey, into (height, width, 3) otherwise."""
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return np.asarray(image, dtype=np.uint8)


def _require_one_size(source: Source, images: list[Pixels]) -> None:
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) > 1:
        (h0, w0), (h1, w1) = sizes[0], sizes[-1]
        raise UsageError(
            f"{source} has images of {len(sizes)} sizes, from {h0} x {w0} to {h1} x {w1}: scale them to one size first."
        )


def _class_numbers(feature: Any, train: list[Any], test: list[Any], source: Source) -> tuple[Labels, Labels, int]:
    """Number the classes as the data set declares them, or else in the sorted order of the training labels."""
    import datasets

    for label in train + test:
        if not isinstance(label, int | str):
            raise UsageError(f"{source} has a label that is neither a whole number nor a name: {label}.")
    declared = isinstance(feature, datasets.ClassLabel)
    values = np.arange(feature.num_classes) if declared else np.unique(np.asarray(train))
    numbers = []
    for what, labels in (("training", np.asarray(train)), ("test", np.asarray(test))):
        number = np.searchsorted(values, labels).clip(max=len(values) - 1)
        unknown = labels[values[number] != labels]
        if len(unknown):
            raise UsageError(
                f"{source} has the label {unknown[0]} in its {what} split, which is none of its {len(values)} classes."
            )
        numbers.append(number.astype(np.int64))
    return numbers[0], numbers[1], len(values)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _unreadable(source: Source, error: Exception) -> UsageError:
    return UsageError(f"{source} cannot be read: {_reason(error)}.")


def _reason(error: BaseException) -> str:
    """Give the first sentence of the error at the root of `error`, which the libraries wrap in general ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".:")
