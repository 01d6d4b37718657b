"""Data sets that need no download; to add one, write its file and register it here."""

from collections.abc import Callable

from flatlab.data.bundled import digits
from flatlab.data.images import ImageData

BUNDLED: dict[str, Callable[[], ImageData]] = {"digits": digits.load}
"""What loads each, by its name on the command line."""
