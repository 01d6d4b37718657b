"""A local folder's splits and the classes of its folders of images, decided by the first level of names alone.

`datasets` takes any folder on an image's path for a split if it is called like one: a class called `train`, which
CIFAR-100 has, would bring its test images into the training set.
"""

import mimetypes
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from flatlab.data.samples import Sample, Samples
from flatlab.errors import UsageError

SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
"""What a split may be called, in any case; the first name of each wins over the others."""

FILES = (".csv", ".tsv", ".parquet")
"""Files of rows, which may be named as a data set each by itself."""

TABLES = (*FILES, ".json", ".jsonl", ".arrow", ".tar", ".zip")
"""Files that hold many samples."""


_OTHERS = (".heic", ".heif", ".avif", ".jxl", ".svg", ".dng", ".raw")
"""Of images that Pillow does not open by itself, as far as Python may not know them for images."""


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split."""

    folder: Path | None  # the folder that is the split; None where the files' names tell
    files: tuple[Path, ...]  # sorted by path

    @property
    def images(self) -> list[Path]:
        """Those that are images by their names."""
        return [file for file in self.files if _is_image(file)]

    @property
    def unreadable(self) -> list[Path]:
        """Those whose names are an image's that is not read here."""
        kinds = {file: mimetypes.guess_type(file.name)[0] or "" for file in self.files if not _is_image(file)}
        return [file for file, kind in kinds.items() if kind.startswith("image/") or file.suffix.lower() in _OTHERS]

    @property
    def parquet(self) -> list[Path]:
        """Those that are Parquet files, but for one that describes a folder's images."""
        return [file for file in self.files if file.suffix.lower() == ".parquet" and not _is_metadata(file)]

    @property
    def tables(self) -> list[Path]:
        """Those that are rows, but for one that describes a folder's images."""
        return [file for file in self.files if file.suffix.lower() in FILES and not _is_metadata(file)]

    @property
    def metadata(self) -> list[Path]:
        """Those that describe a folder's images, as `datasets` has it."""
        return [file for file in self.files if _is_metadata(file)]


def by_split(names: Iterable[str], where: str) -> dict[str, str]:
    """Map each split that is among `names` to the name it has there; names of nothing are left out.

    Raises:
        UsageError: two of `where`'s names stand for one split, and neither is its first.
    """
    there, found = list(names), {}
    for split, aliases in SPLITS.items():
        matching = [name for name in there if name.lower() in aliases]
        matching = [name for name in matching if name == split] or matching
        if len(matching) > 1:
            raise UsageError(f"{where} has {' and '.join(matching)}, two names of one split: keep one of them.")
        if matching:
            found[split] = matching[0]
    return found


def split_files(folder: Path) -> dict[str, SplitFiles]:
    """Find the files of each split: those in the folders train/ and test/ or, where there are none, by their names.

    Hidden files and folders, and those that archives of a Mac bring, are left out. A file is a training split.

    Raises:
        UsageError: a name stands for two splits, files named after splits lie in several folders, or parts of a split
            that count themselves are missing or there twice.
    """
    if folder.is_file():
        return {"train": SplitFiles(None, (folder,))}
    folders = by_split((entry.name for entry in _folders(folder)), str(folder))
    if folders:
        splits = {split: visible_files(folder / name) for split, name in folders.items()}
        for files in splits.values():
            _require_all_parts(files)
        return {split: SplitFiles(folder / folders[split], tuple(files)) for split, files in splits.items()}
    found: dict[str, list[Path]] = {}
    for file in visible_files(folder):
        if file.suffix.lower() in TABLES and (split := _split_of(file)):
            found.setdefault(split, []).append(file)
    parents = sorted({str(file.parent) for files in found.values() for file in files})
    if len(parents) > 1:
        raise UsageError(f"{folder} has files of splits in {' and '.join(parents)}: name one of these folders.")
    for files in found.values():
        _require_all_parts(files)
    return {split: SplitFiles(None, tuple(files)) for split, files in found.items()}


_PART = re.compile(r"(.*)-(\d+)-of-(\d+)(-[0-9a-f]+)?")
"""How the hub names the parts of a split, from 00000 on."""


def _require_all_parts(files: Sequence[Path]) -> None:
    """Raise `UsageError` unless files that are one of so many parts are all here, each once."""
    parts: dict[Path, dict[int, Path]] = {}
    counts: dict[Path, int] = {}
    for file in files:
        if file.suffix.lower() not in TABLES or not (match := _PART.fullmatch(file.stem)):
            continue
        whole, number = file.with_name(match[1]), int(match[2])
        own = parts.setdefault(whole, {})
        if number in own or counts.setdefault(whole, int(match[3])) != int(match[3]):
            other = own.get(number, next(iter(own.values())))
            raise UsageError(f"{file} and {other} are parts of one split made at two times: keep those of one of them.")
        own[number] = file
    for whole, own in parts.items():
        first = 0 if 0 in own or counts[whole] not in own else 1
        missing = sorted(set(range(first, first + counts[whole])) - own.keys())
        if missing:
            raise UsageError(
                f"Of the {counts[whole]} parts of {whole} number {missing[0]} is missing (they are counted from "
                f"{first}): bring it here, or name the others otherwise if they are all that is meant."
            )


def visible_files(folder: Path) -> list[Path]:
    """Every file below `folder` that is not hidden, sorted by path; links to folders are followed, each folder once."""
    found, seen = [], set()
    for path, folders, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        identity = os.path.realpath(path)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found += [Path(path, name) for name in files if not _is_hidden(name)]
    return sorted(found, key=str)


def _unreadable(error: OSError) -> None:
    raise UsageError(f"{error.filename} cannot be read ({error.strerror or error}): mend it, or remove it.") from error


def class_folders(train: SplitFiles, test: SplitFiles | None = None) -> tuple[Samples, ...]:
    """Label each image of train/CLASS/... and test/CLASS/... by the first folder below its split.

    The classes are the folders of the training split, in sorted order; all of them are names, 10 before 2.

    Raises:
        UsageError: an image lies in no class's folder, a class's folder holds no image, or the test split has a class
            that the training split has not.
    """
    classes = tuple(_class_names(train))
    if test is None:
        if all(_split_of(Path(name)) for name in classes):
            raise UsageError(
                f"{train.folder} has the folders {' and '.join(classes)}, which are named after splits, not classes: "
                "call them train, and test or validation, and no more."
            )
        return (_labelled(train, classes),)
    unknown = sorted(set(_class_names(test)) - set(classes))
    if unknown:
        raise UsageError(f"{test.folder} has the class {unknown[0]}, which {train.folder} has not: make them agree.")
    return _labelled(train, classes), _labelled(test, classes)


def _class_names(split: SplitFiles) -> list[str]:
    assert split.folder is not None
    filled = set()
    if split.unreadable:
        raise UsageError(
            f"Images of a kind that is not read here lie in {split.folder}, {len(split.unreadable)} in all, as "
            f"{split.unreadable[0].name}: make PNG or JPEG of them, or remove them."
        )
    for image in split.images:
        if image.parent == split.folder:
            raise UsageError(f"{image} lies in no class's folder: move it to {split.folder / 'CLASS'}, or remove it.")
        filled.add(_class_of(image, split.folder))
    for entry in _folders(split.folder):
        if entry.name not in filled:
            raise UsageError(f"{entry} holds no image: remove the folder, or put the class's images there.")
    return sorted(filled)


def _labelled(split: SplitFiles, classes: tuple[str, ...]) -> Samples:
    assert split.folder is not None
    number = {name: place for place, name in enumerate(classes)}
    samples = [Sample(image, number[_class_of(image, split.folder)], str(image)) for image in split.images]
    return Samples(samples, len(samples), classes)


def _class_of(image: Path, split: Path) -> str:
    return image.relative_to(split).parts[0]


def _split_of(file: Path) -> str | None:
    """The split whose name is a word of the file's, as in train-00000-of-00001.parquet."""
    text = file.stem.lower()
    for separator in "_. ":
        text = text.replace(separator, "-")
    words = {word.strip("0123456789") for word in text.split("-")}
    found = [split for split, aliases in SPLITS.items() if words & set(aliases)]
    if len(found) > 1:
        raise UsageError(f"{file} is named after the splits {' and '.join(found)}: leave one of them in its name.")
    return found[0] if found else None


def _folders(folder: Path) -> Iterator[Path]:
    return (entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not _is_hidden(entry.name))


def _is_image(file: Path) -> bool:
    return Image.registered_extensions().get(file.suffix.lower()) in Image.OPEN


def _is_metadata(file: Path) -> bool:
    return file.name in ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "__pycache__", "lost+found")
