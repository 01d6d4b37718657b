"""The errors that this package raises on purpose (anything else that escapes is a defect), and how they list names."""

from collections.abc import Iterable
from typing import Any, get_args


class MeasurementError(ValueError):
    """What cannot be measured as asked. The message is one sentence for the user: what is wrong, and what to do."""


class AsymmetryError(MeasurementError):
    """Second derivatives that are wrong, whoever computed them: their matrix is not symmetric."""


class UncountedError(MeasurementError):
    """Samples of which no target counts, such as padding alone, so that there is no mean over them."""


def require_one_of(word: object, form: Any, name: str) -> None:
    """Raise `MeasurementError` unless `word` is one of those of the Literal `form`."""
    words = get_args(form)
    if word not in words:
        raise MeasurementError(f"{name} is one of {', '.join(map(repr, words))}, not {word!r}.")


def some(names: Iterable[str], most: int = 8) -> str:
    """The first names, and how many more there are, as a sentence lists them."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
