"""Loading a data set by name: decoded once, then mapped from a cache of uint8 arrays.

The cache has one folder per data set under `platformdirs.user_cache_dir("flatlab")`, or FLATLAB_CACHE. Its key covers
the name and, for local data, every file's path, size and times, so that changed files are decoded anew; data from the
hub are decoded once for all. `meta.json` is written last: where it is, the arrays are whole.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from platformdirs import user_cache_path

from flatlab.data.bundled import BUNDLED
from flatlab.data.image_folder import FILES, visible_files
from flatlab.data.images import ImageData, Split, channel_statistics
from flatlab.data.known import KNOWN
from flatlab.data.numbering import copied, warn_of_copies
from flatlab.data.own import load_own
from flatlab.data.pixels import Pixels
from flatlab.data.samples import AS_FOUND, Reading, Source
from flatlab.data.source import Decoded, read
from flatlab.errors import FlatlabError, UsageError
from flatlab.files import WriteError, atomic_write, file_lock, remove_unfinished, write_text, writing
from flatlab.functions import names_function

LAYOUT = 5
"""Version of the cache, of how images are decoded as of where they lie in it; part of every key."""


def load_images(name: str, *, root: Path | None = None, reading: Reading = AS_FOUND) -> ImageData:
    """Load the data set `name`.

    Args:
        name: one in `flatlab.data.bundled` or in `flatlab.data.known`, a local folder of Parquet files
            (train-*.parquet, test-*.parquet) or of images (train/CLASS/*.png, test/CLASS/*.png), a CSV or Parquet file
            or folder of rows (`table.py`), or a name on the Hugging Face hub. A known name is never a folder: ./digits
            is one. Or `package.module:function`, which runs only if the command line names it (`own.load_own`).
        root: folder of local copies, each in a folder of its name; the environment's FLATLAB_DATA if None.
        reading: what the user says of labels, splits and sizes.

    Returns:
        The data, images or scaled rows mapped from the cache. Mean and standard deviation of images are the published
        ones for a known name, or a folder of that name, and measured on the training images for all others, which are
        not augmented.

    Raises:
        UsageError: the data set is nowhere to be found, or is not an image-classification data set of one image size
            with a training and a test split.
        FlatlabError: the cache cannot be written, or is damaged.
    """
    if names_function(name):
        return load_own(name, reading)
    if name in BUNDLED:
        reading.require_only((), f"The data set {name}")
        return BUNDLED[name]()
    source = _locate(name, root, reading)
    cached = cache_folder() / _key(source)
    if not _is_whole(cached):
        _decode(source, cached)
    try:
        data, copies = _load(cached, source.name)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise FlatlabError(f"The decoded images in {cached} are damaged ({error}): delete that folder.") from error
    if source.name in KNOWN and data.input_shape[0] != len(data.mean):
        raise UsageError(
            f"{source} is not {source.name}: its images have {data.input_shape[0]} channels, not {len(data.mean)}."
        )
    warn_of_copies(source, "rows" if len(data.input_shape) == 1 else "images", copies, len(data.test))
    return data


def _decode(source: Source, cached: Path) -> None:
    lock = file_lock(cached.with_name(f"{cached.name}.lock"))
    with _keeping(cached):
        cached.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        if not _is_whole(cached):  # another process may have decoded it while this one waited
            remove_unfinished(cached)
            decoded = read(source)
            with _keeping(cached):
                _store(cached, *decoded)
    finally:
        lock.release()


@contextmanager
def _keeping(cached: Path) -> Iterator[None]:
    """Within the block an operating system's error is one of writing to the cache."""
    try:
        with writing(cached):
            yield
    except WriteError as error:
        raise FlatlabError(
            f"The decoded images cannot be kept in {cached.parent} ({error.reason}): make room there, "
            "or name another folder in the environment variable FLATLAB_CACHE."
        ) from error


def is_local(name: str, root: Path | None = None) -> bool:
    """Whether the data set is bundled, in files here or a function's, so that it can change. Raises `UsageError`."""
    return names_function(name) or name in BUNDLED or _locate(name, root, AS_FOUND).folder is not None


def absolute_name(name: str, root: Path | None = None) -> str:
    """The name by which `load_images` finds the same data from any working directory: a path is completed.

    Known names, and those of local copies in `root` (FLATLAB_DATA where it is None), stay as they are.
    """
    root = _local_copies(root)
    if (
        names_function(name)
        or name in BUNDLED
        or name in KNOWN
        or (root is not None and (root / name).exists())
        or not Path(name).exists()
    ):
        return name
    return os.path.abspath(name)  # a link keeps its name, which may be that of a known set


@dataclass(frozen=True)
class Place:
    """Where `load_images` takes a data set from."""

    source: str  # "bundled", the folder of a local copy, or organisation/name on the Hugging Face hub
    at_hand: bool  # whether it is here, so that loading it downloads nothing
    decoded: bool  # whether its images are in the cache


def known_places(root: Path | None = None) -> dict[str, Place]:
    """Return where each data set that is known by name comes from; nothing is loaded. Raises `UsageError`."""
    places = {name: Place("bundled", at_hand=True, decoded=False) for name in BUNDLED}
    for name in KNOWN:
        source = _locate(name, root, AS_FOUND)
        decoded = _is_whole(cache_folder() / _key(source))
        places[name] = Place(str(source.folder or source.hub), source.folder is not None or decoded, decoded)
    return places


def _locate(name: str, root: Path | None, reading: Reading) -> Source:
    """Find a local copy: in `root` first, then, unless the name is a known one, as a path in its own right.

    Of a path that is no longer there, or was another machine's, `root` may hold what it ends with.
    """
    root = _local_copies(root)
    if root is not None and not root.is_dir():
        raise UsageError(f"The folder of local data sets {root} (--data-root or FLATLAB_DATA) does not exist.")
    candidates = [] if root is None else [root / name]
    if name not in KNOWN and Path(name) not in candidates:
        candidates.append(Path(name))
    if root is not None and Path(name).is_absolute():
        candidates.append(root / Path(name).name)
    found = next((candidate for candidate in candidates if _is_data(candidate)), None)
    folder = None if found is None else found.resolve()
    # A link is the set that it is called, or that it leads to.
    names = [name] if found is None or folder is None else [name, Path(os.path.abspath(found)).name, folder.name]
    short_name = next((each for each in names if each in KNOWN), names[min(1, len(names) - 1)])
    known = KNOWN.get(short_name)
    return Source(
        name=short_name,
        folder=folder,
        looked_in=tuple(candidates),
        hub=known.hub if known else name,
        label=reading.label or (known.label if known else None),
        reading=reading,
    )


def _local_copies(root: Path | None) -> Path | None:
    """The folder of local copies: `root`, or that of FLATLAB_DATA where that is None and set."""
    named = os.environ.get("FLATLAB_DATA")
    return Path(named) if root is None and named else root


def _is_data(path: Path) -> bool:
    """Whether `path` is a folder, or a file of rows. Raises `UsageError` for another file."""
    if path.is_file() and path.suffix.lower() not in FILES:
        raise UsageError(f"{path} is neither a folder nor a file of rows ({', '.join(FILES)}).")
    return path.exists()


def cache_folder() -> Path:
    """Where decoded images are kept."""
    return Path(os.environ.get("FLATLAB_CACHE") or user_cache_path("flatlab"))


def _key(source: Source) -> str:
    identity: list[object] = [LAYOUT, source.folder or source.hub, source.label]
    if source.reading != AS_FOUND:
        identity.append(tuple(vars(source.reading).values()))
    if source.folder is not None:
        for file in [source.folder] if source.folder.is_file() else visible_files(source.folder):
            status = _status(file)  # of the two times one may be set, as `cp -p` and `touch -d` do, the other not
            identity.append((str(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()
    return f"{source.name.replace('/', '-')}-{digest[:16]}"


def _status(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        what = "points to nothing" if file.is_symlink() else f"cannot be read ({error.strerror or error})"
        raise UsageError(f"{file} {what}: mend it, or remove it.") from error


def _is_whole(folder: Path) -> bool:
    return (folder / "meta.json").exists()


def _store(folder: Path, train: Decoded, test: Decoded, classes: int) -> None:
    colour = any(image.ndim == 3 for decoded in (train, test) for image in decoded.images)
    for split, decoded in (("train", train), ("test", test)):
        with atomic_write(folder / f"{split}-images.npy") as file:
            if isinstance(decoded.images, np.ndarray):
                np.save(file, decoded.images)
            else:
                _write_images(file, decoded.images, 3 if colour else 1)
        with atomic_write(folder / f"{split}-labels.npy") as file:
            np.save(file, decoded.labels)
        if decoded.owners is not None:
            with atomic_write(folder / f"{split}-owners.npy") as file:
                np.save(file, decoded.owners)
    mean: list[float] = []
    std: list[float] = []
    if not isinstance(train.images, np.ndarray):  # rows are scaled
        mean, std = channel_statistics(np.load(folder / "train-images.npy", mmap_mode="r"))
    meta = {"classes": classes, "mean": mean, "std": std, "copies": copied(train.images, test.images)}
    write_text(folder / "meta.json", json.dumps(meta))


def _write_images(file: IO[bytes], images: Sequence[Pixels], channels: int) -> None:
    shape = (len(images), channels, *images[0].shape[:2])
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    for image in images:
        planes = image.transpose(2, 0, 1) if image.ndim == 3 else image[None]
        file.write(np.broadcast_to(planes, shape[1:]).tobytes())


def _load(folder: Path, name: str) -> tuple[ImageData, int]:
    """The data, and how many test samples are training samples too, as far as was counted."""
    meta = json.loads((folder / "meta.json").read_text())
    train, test = _load_split(folder, "train"), _load_split(folder, "test")
    if name in KNOWN:
        known = KNOWN[name]
        mean, std, augment = known.mean, known.std, known.augment
    else:
        mean, std, augment = tuple(meta["mean"]), tuple(meta["std"]), False
    return ImageData(name, train, test, meta["classes"], mean, std, augment), meta.get("copies", 0)


def _load_split(folder: Path, split: str) -> Split:
    # Mode "c" (copy on write) because torch warns of read-only arrays; pages stay shared between processes.
    images = np.load(folder / f"{split}-images.npy", mmap_mode="c")
    labels = np.load(folder / f"{split}-labels.npy")
    owners = folder / f"{split}-owners.npy"
    return Split(
        torch.from_numpy(images),
        torch.from_numpy(labels),
        torch.from_numpy(np.load(owners)) if owners.exists() else None,
    )
