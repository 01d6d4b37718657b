"""What a tracker is told of a run, and what it has to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "flatlab"
"""Where runs are kept, unless the tracker's own environment variable says otherwise."""

FINISH_SECONDS = 30.0
"""How long a run that is over waits for a tracker, which may have lost its network."""


@dataclass(frozen=True)
class Tracked:
    """A run, as a tracker is told of it."""

    folder: Path
    settings: Mapping[str, Any]  # the configuration, as plain data
    completed: int  # rounds that it had when it was begun or gone on with
    known_as: str | None  # what `start` returned when the run was begun; None for a new run

    @property
    def name(self) -> str:
        """The run's name: its folder's."""
        return self.folder.resolve().name

    @property
    def group(self) -> str:
        """What it belongs to: the folder of results, for a cell of a grid."""
        return self.folder.resolve().parent.name


class Tracker(Protocol):
    """Keeps the numbers of one run. Whatever a method raises ends the tracking, and never the run."""

    def start(self, run: Tracked) -> str:
        """Begin a run, or go on with the one that is `run.known_as`; returns what it is known as."""

    def log(self, numbers: Mapping[str, float], round_: int) -> None:
        """Take the numbers, by tag, of a round; rounds that a crash undid come again, with the same numbers."""

    def finish(self) -> None:
        """Bring to its place whatever is still on its way."""
