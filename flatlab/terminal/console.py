"""One console for results, and one for what is said beside them."""

from rich.console import Console

console = Console()
"""Tables and results, on standard output."""

status = Console(stderr=True)
"""Progress, on standard error, so that results can be piped."""


def say(note: str) -> None:
    """Print `note` as it is, if there is one, on standard error."""
    if note:
        status.print(note, markup=False, highlight=False, soft_wrap=True)
