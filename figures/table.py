"""What a table is."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table as it is read, and its numbers as they are computed with."""

    name: str
    title: str
    notes: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[dict[str, Any], ...]  # one per row, for CSV
