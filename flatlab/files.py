"""Writing files so that a reader, or a resumed run, never meets half of one."""

import io
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from flatlab.errors import FlatlabError


class WriteError(FlatlabError):
    """`path` cannot be written: the disk is full, or this user may not; `reason` is the operating system's word."""

    def __init__(self, path: Path, error: OSError) -> None:
        self.path, self.reason = path, error.strerror or str(error) or type(error).__name__
        super().__init__(
            f"{path} cannot be written ({self.reason}): make room there or choose another place; what was saved "
            "before stays."
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within the block an operating system's error is one of writing `path`, and is raised as `WriteError`."""
    try:
        yield
    except OSError as error:
        raise WriteError(path, error) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` when the block ends without an exception, and leaves no trace otherwise.

    The bytes are flushed to the disk (fsync) under a temporary name in the same folder, renamed over `path`, and the
    folder is flushed too, so that after a crash `path` holds either its old content or the whole new one. Raises
    `WriteError` where any of this fails; an error of the block's own goes on as it is.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{token_hex(4)}.part")
        raw = _Watched(temporary, "xb")
    try:
        with _told(raw, path), io.BufferedWriter(raw) as file:
            yield file
            with writing(path):
                file.flush()
                os.fsync(file.fileno())
        with writing(path):
            os.replace(temporary, path)
    except BaseException:
        raw.close()
        with suppress(OSError):
            os.unlink(temporary)
        raise
    with writing(path):
        _sync_folder(path.parent)


class _Watched(io.FileIO):
    """Remembers the error of a write: libraries that write through a file, as torch does, raise their own instead."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


@contextmanager
def _told(raw: _Watched, path: Path) -> Iterator[None]:
    """Raise `WriteError` for whatever leaves the block once a write to `raw` has failed."""
    try:
        yield
    except Exception as error:
        if raw.failure is not None:
            raise WriteError(path, raw.failure) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_files(stem: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write `stem`.<ending> for every ending, atomically each; returns their paths."""
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        with atomic_write(path) as file:
            file.write(content)
    return paths


@contextmanager
def appending(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file at the end of `path`; raises `WriteError`, and then leaves `path` as it was."""
    with writing(path), path.open("ab") as file:
        length = file.tell()
        try:
            yield file
            file.flush()
        except OSError:
            with suppress(OSError):
                os.truncate(path, length)
            raise


def require_writable(path: Path) -> None:
    """Raise `WriteError` unless a file can be made beside `path`, or in the nearest folder above that exists."""
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with writing(path), tempfile.TemporaryFile(dir=folder):
        pass


def json_text(content: Mapping[str, Any]) -> str:
    """Plain data as JSON; what is no finite number, which JSON does not have, is null."""
    return json.dumps(finite(content), indent=2, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same plain data with null for what is no finite number, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove_unfinished(folder: Path) -> None:
    """Delete what killed `atomic_write`s left in `folder` and below; nobody may be writing there."""
    for file in folder.rglob(".*.part"):
        file.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
