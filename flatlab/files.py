"""Writing files so that a reader, or a resumed run, never meets half of one."""

import errno
import io
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Integral
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from filelock import BaseFileLock, FileLock

from flatlab.errors import FlatlabError

_LINKS = 40  # that are followed, as many as Linux does


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
    folder is flushed too, so that after a crash `path` holds either its old content or the whole new one. Where `path`
    is a link, all this happens to what it points to. A pipe or a device has readers of its own, whom a new file of its
    name would not reach: it is written into. Raises `WriteError` where any of this fails; an error of the block's own
    goes on as it is.
    """
    with writing(path):
        stream = _stream(path)
    if stream is None:
        with _replacing(path) as file:
            yield file
    else:
        with _told(raw := _Watched(stream, "wb"), path), io.BufferedWriter(raw) as file:
            yield file


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """What `atomic_write` does where `path` is a regular file, or nothing yet."""
    with writing(path):
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{token_hex(4)}.part")
        raw = _Watched(temporary, "xb")
    try:
        with _told(raw, path), io.BufferedWriter(raw) as file:
            yield file
            with writing(path):
                file.flush()
                os.fsync(file.fileno())
        with writing(path):
            os.replace(temporary, target)
    except BaseException:
        raw.close()
        with suppress(OSError):
            os.unlink(temporary)
        raise
    with writing(path):
        _sync_folder(target.parent)


def _target(path: Path) -> Path:
    """Where the file is, or will be, that `path` names: a rename would put itself in a link's place."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _stream(path: Path) -> int | None:
    """What `path` names, opened to write into, where it is there and no regular file; None where it can be replaced.

    Neither created nor cut: a device node is none of ours, and what a shell has opened may hold more than our output.
    """
    number = _descriptor(path)
    if number is not None:
        return os.dup(number)
    return None if _is_replaceable(path) else os.open(path, os.O_WRONLY)


def _is_replaceable(path: Path) -> bool:
    """Whether `path` is a regular file, or nothing yet."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True


def _descriptor(path: Path) -> int | None:
    """The number of this process's open file that `path` names, as /dev/stdout and a shell's >(...) do; or None.

    Opened anew by its name, a redirected file would be written over from its beginning, and a socket not at all.
    """
    for _ in range(_LINKS):
        folder = os.path.realpath(path.parent)
        if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd") and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, os.readlink(path))
    return None


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


def remove_files(stem: Path, endings: Iterable[str]) -> None:
    """Take away `stem`.<ending> for every ending, where it is there; raises `WriteError`."""
    for ending in endings:
        path = stem.with_name(f"{stem.name}.{ending}")
        with writing(path):
            path.unlink(missing_ok=True)


class _Whole(io.FileIO):
    """Writes at once all that it is given: what a buffer still held after a failure would go out as it is closed."""

    def write(self, data: Any) -> int:
        left = memoryview(data)
        while left:
            left = left[super().write(left) :]
        return len(data)


@contextmanager
def appending(path: Path) -> Iterator[io.FileIO]:
    """Yield a binary file at the end of `path`; raises `WriteError`, and then leaves `path` as it was."""
    with writing(path), _Whole(path, "ab") as file:
        length = file.tell()
        try:
            yield file
        except OSError:
            with suppress(OSError):
                os.truncate(path, length)
            raise


def file_lock(path: Path, patience: float = -1.0) -> BaseFileLock:
    """The lock that `path` stands for, waited for so many seconds (-1: however long); only that of the system.

    Where the file system has none, acquiring it raises `OSError`: a file that is there or not would outlive its owner.
    """
    return FileLock(path, timeout=patience, poll_interval=0.02, fallback_to_soft=False)


def require_writable(path: Path) -> None:
    """Raise `WriteError` unless `atomic_write` can begin at `path`; nothing is made, and no pipe opened, for that.

    What is to be replaced needs a folder that a file can be made in, or the nearest above that exists.
    """
    with writing(path):
        number = _descriptor(path)
        if number is not None:
            os.write(number, b"")  # nothing, which fails all the same for what is closed, or open for reading only
        elif _is_replaceable(path):
            folder = _target(path).parent
            while not folder.exists() and folder != folder.parent:
                folder = folder.parent
            with tempfile.TemporaryFile(dir=folder):
                pass
        elif path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def json_text(content: Mapping[str, Any]) -> str:
    """Plain data as JSON; what is no finite number, which JSON does not have, is null."""
    return json.dumps(finite(content), indent=2, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same plain data, NumPy's integers too, with null for what is no finite number, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove_unfinished(folder: Path) -> None:
    """Delete what killed `atomic_write`s left in `folder` and its clients/; nobody may be writing there."""
    for part in (folder, folder / "clients"):
        for file in part.glob(".*.part"):
            file.unlink(missing_ok=True)


_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say that have no fsync of folders, as some shared ones: what was renamed is there all the same."""


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
