"""The figures of the four commands, and where they are written."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatlab.cli.console import console

Draw = Callable[[Sequence[Mapping[str, Any]], Path], list[Path]]


def save_picture(draw: Draw, results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw into `path`.png, .pdf and .csv (an ending of these that `path` already has is taken off), and say so."""
    stem = path.with_suffix("") if path.suffix in (".png", ".pdf", ".csv") else path
    drawn = draw(results, stem)
    console.print(f"Figure: [bold]{drawn[0]}[/bold], .pdf, .csv", soft_wrap=True, highlight=False)
