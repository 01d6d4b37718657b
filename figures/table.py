"""What a table is."""

from dataclasses import dataclass
from typing import Any

from figures.unconverged import MEANINGS


@dataclass(frozen=True)
class Table:
    """A table as it is read, and its numbers as they are computed with."""

    name: str
    title: str
    notes: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[dict[str, Any], ...]  # one per row, for CSV

    @property
    def doubts(self) -> list[str]:
        """Those of its notes that say what marks in its cells mean."""
        return [note for note in self.notes if note.startswith(tuple(MEANINGS))]
