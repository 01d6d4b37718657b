"""Who writes to a run's folder: one process at a time, by a lock of the system that goes with the process."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, Timeout

from flatlab.errors import UsageError
from flatlab.files import WriteError, file_lock

ATTEMPTS = 100  # to lock a folder that others take away while it is empty
HANDOVER = 1.0  # seconds to wait for a lock: a program that a killed run was about to start keeps it until it runs

_NAME = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)


class BusyError(UsageError):
    """Another process is writing to the folder."""


@contextmanager
def held(folder: Path, patience: float) -> Iterator[None]:
    """Hold the folder, which is made where it is not there, for this process alone.

    One that the block leaves empty was made for nothing, and goes. Raises `BusyError` where another process has it for
    `patience` seconds, `UsageError` where it cannot be held at all, and `WriteError`.
    """
    lock = file_lock(folder / _NAME, patience)
    _acquire(lock, folder)
    try:
        yield
    finally:
        if [file.name for file in folder.iterdir()] == [_NAME]:
            (folder / _NAME).unlink()
            with suppress(OSError):
                folder.rmdir()
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether another process holds the folder, which is only read: it may lie where nothing can be written."""
    try:
        descriptor = os.open(folder / _NAME, os.O_RDONLY)
    except OSError:  # there is none, or it is not ours to open
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:  # of a file system without locks, where nobody can hold it; or one that says so otherwise
        return error.errno == errno.EACCES
    finally:
        os.close(descriptor)
    return False


def _acquire(lock: BaseFileLock, folder: Path) -> None:
    if folder.is_file():
        raise UsageError(f"{folder} is a file, and a run needs a folder: choose another with --out.")
    for attempt in range(ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            return
        except Timeout as error:
            raise BusyError(
                f"Another run is writing to {folder}; wait for it, or choose another folder with --out."
            ) from error
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise UsageError(
                    f"{folder} is on a file system without locks (flock), which keep two runs from writing to one "
                    "folder: mount it with them, or choose another folder with --out."
                ) from error
            # whoever held an empty folder takes it away, perhaps between these two lines or within the first
            vanished = isinstance(error, FileNotFoundError | FileExistsError) and not folder.is_file()
            if not vanished or attempt == ATTEMPTS - 1:
                raise WriteError(folder, error) from error
