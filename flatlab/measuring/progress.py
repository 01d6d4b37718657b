"""How a measurement tells what it is doing."""

from collections.abc import Callable

Tell = Callable[[str], None]
"""Shows what is being done, beside the name of the subject."""


def silent(stage: str) -> None:
    """Tell nobody."""
