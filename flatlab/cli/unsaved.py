"""Numbers that were computed and cannot be saved: they are shown all the same, and the command then fails."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flatlab.cli.console import status
from flatlab.errors import FlatlabError
from flatlab.files import WriteError, require_writable


def warn_of_unwritable(paths: Sequence[Path]) -> None:
    """Say which of `paths` cannot be written, before any work is done in vain."""
    for path in paths:
        try:
            require_writable(path)
        except WriteError as error:
            said = f"{path} cannot be written ({error.reason}): the numbers will only be shown."
            status.print(said, markup=False, highlight=False, soft_wrap=True)


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
