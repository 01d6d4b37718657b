"""What a data set is before it is read: where it lies, and its samples as they are stored."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flatlab.data.pixels import Encoded


@dataclass(frozen=True)
class Source:
    """A data set that has been located and not yet read."""

    name: str  # as the user knows it
    folder: Path | None  # where its files lie; None: on the hub
    looked_in: tuple[Path, ...]  # folders where it could have lain
    hub: str  # organisation/name on the hub
    label: str | None  # column of the labels, where there is one of this name; else it is found out

    def __str__(self) -> str:
        return f"The data set in {self.folder}" if self.folder else f"The hub's data set {self.hub}"


@dataclass(frozen=True)
class Sample:
    """One image, not yet decoded, with its label."""

    image: Encoded
    label: object  # as it is stored
    name: str  # what a sentence calls the image


@dataclass(frozen=True)
class Samples:
    """The samples of one split."""

    stream: Iterable[Sample]  # to be gone through once
    count: int | None  # how many there are, where that is known beforehand
    classes: tuple[str, ...] | None  # their names where they are declared; a label is then a position in here
