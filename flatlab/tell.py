"""How whatever takes long tells what it is doing."""

from collections.abc import Callable

Tell = Callable[[str], None]
"""Takes a sentence for the user, or the stage that a measurement is at."""


def silent(stage: str) -> None:
    """Tell nobody."""
