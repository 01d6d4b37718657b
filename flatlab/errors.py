"""The errors that a user may see; anything else that escapes is a defect."""

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from reprlib import Repr

from analysis.errors import MeasurementError


class FlatlabError(Exception):
    """A run that cannot go on. The message is one sentence for the user; the command exits with code 1."""

    exit_code = 1


NOT_CONVERGED = 3
"""The exit code of a command whose numbers were shown and saved, and some of which did not converge."""


class UsageError(FlatlabError):
    """A request that cannot be carried out as asked (a wrong flag, field or file); exits with code 2."""

    exit_code = 2


SAID = (FlatlabError, MeasurementError)
"""Errors whose message is already a sentence for the user."""


def exit_code(error: Exception) -> int:
    """The exit code of a command that ends in `error`, one of `SAID`: what cannot be measured as asked is usage."""
    return error.exit_code if isinstance(error, FlatlabError) else UsageError.exit_code


def first_line(error: BaseException) -> str:
    """The kind of an error that was not ours and the first line of what it says, for a sentence."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0].rstrip('.')}"


@contextmanager
def told_in_a_sentence(what: str) -> Iterator[None]:
    """Raise `UsageError`, "`what`: reason", for what code of the user's, or PyTorch in it, raises within the block."""
    try:
        yield
    except SAID:
        raise
    except Exception as error:
        raise UsageError(f"{what}: {first_line(error)}.") from error


def require_count(option: str, value: object, least: int = 1) -> None:
    """Raise `UsageError` unless the value of `option` is a whole number, `least` or more."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise UsageError(f"--{option} is a whole number, {least} or more, not {shown(value)}.")


def require_seconds(option: str, value: object) -> None:
    """Raise `UsageError` unless the value of `option` is a number of seconds, 0 or more."""
    if not isinstance(value, Real) or isinstance(value, bool) or not float(value) >= 0:
        raise UsageError(f"--{option} is a number of seconds, 0 or more, not {shown(value)}.")


LONGEST = 120
"""Characters of a value in a message."""

_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong = 2, 80, 40


def shown(value: object) -> str:
    """`value` as a message may quote it: on one line and short, whatever it is."""
    if not isinstance(value, str | int | float | list | tuple | dict | set | None):
        return f"a {type(value).__name__}"
    try:
        text = " ".join(_SHORT.repr(value).split())
    except ValueError:  # Python prints no whole number of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
