"""Shares of a grid that jobs of a batch system carry at the same time, in one folder of results.

A share is cells of the grid as it is written, not of what is left of it: so shares never overlap, whatever is done by
then, and a job that is queued again goes on with its own cells.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flatlab.errors import UsageError, shown
from flatlab.grid.plan import Cell


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `of` shares."""

    number: int  # 1 to `of`
    of: int

    def cells(self, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        """Every `of`-th cell, so that every share has as many of each seed as can be."""
        return tuple(cells[self.number - 1 :: self.of])


WHOLE = Shard(1, 1)


def read_shard(words: str | None) -> Shard:
    """The share named as in "3/20"; the whole where none is. Raises `UsageError`."""
    if words is None:
        return WHOLE
    found = re.fullmatch(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*", words)
    shard = Shard(*map(int, found.groups())) if found else None
    if shard is None or not 1 <= shard.number <= shard.of:
        raise UsageError(f"--shard is one of so many, from 1/20 to 20/20 if they are twenty, not {shown(words)}.")
    return shard
