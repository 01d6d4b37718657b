"""What every command shares of what it writes: the file that `--json` asks for, and numbers that are not saved.

Numbers that were computed and cannot be saved are shown all the same, and the command then fails.
"""

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flatlab.errors import FlatlabError
from flatlab.files import WriteError, json_text, require_writable, write_text
from flatlab.terminal.console import status

STANDARD_OUTPUT = Path("-")
"""Where `--json -` writes; what people read then goes to standard error (`main`)."""


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write `content` to `path`, atomically, if there is one; "-" is standard output."""
    if path == STANDARD_OUTPUT:
        sys.stdout.write(json_text(content))
    elif path is not None:
        write_text(path, json_text(content))


def warn_of_unwritable(paths: Sequence[Path]) -> None:
    """Say which of `paths` cannot be written, before any work is done in vain."""
    for path in paths:
        if path == STANDARD_OUTPUT:
            continue
        try:
            require_writable(path)
        except WriteError as error:
            said = f"{path} cannot be written ({error.reason}): the numbers will only be shown."
            status.print(said, markup=False, highlight=False, soft_wrap=True)


def require_places(paths: Sequence[Path | None]) -> None:
    """Raise `WriteError` where one of the files `paths` cannot be written, before the work that would end there."""
    for path in paths:
        if path is None or path == STANDARD_OUTPUT:
            continue
        if path.is_dir():
            raise WriteError(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
        require_writable(path)


@contextmanager
def noted(unsaved: list[str]) -> Iterator[None]:
    """Let a `WriteError` end the block, but not the command: its sentence goes to `unsaved`, for `fail_if`."""
    try:
        yield
    except WriteError as error:
        unsaved.append(str(error))


def fail_if(unsaved: Sequence[str]) -> None:
    """Raise `FlatlabError` with the sentences that `noted` put down, if there are any."""
    if unsaved:
        more = f" So it is with {len(unsaved) - 1} more." if len(unsaved) > 1 else ""
        raise FlatlabError(f"{unsaved[0]}{more}")
