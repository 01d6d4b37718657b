"""What every command shares when it speaks: one console, and the file that `--json` asks for."""

from pathlib import Path
from typing import Any

from rich.console import Console

from flatlab.files import json_text, write_text

console = Console()
"""Tables and results, on standard output."""

status = Console(stderr=True)
"""Progress, on standard error, so that results can be piped."""


def say(note: str) -> None:
    """Print `note` as it is, if there is one, on standard error."""
    if note:
        status.print(note, markup=False, highlight=False, soft_wrap=True)


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write `content` to `path`, atomically, if there is one."""
    if path is not None:
        write_text(path, json_text(content))
