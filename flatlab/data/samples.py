"""What a data set is before it is read: where it lies, and its samples as they are stored."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flatlab.data.pixels import Encoded
from flatlab.errors import UsageError


@dataclass(frozen=True)
class Reading:
    """What a user says of how a data set is read; None: as it is found."""

    label: str | None = None  # column of the labels
    configuration: str | None = None  # of a data set on the hub
    holdout: float | None = None  # share of the training split that is held out as the test split
    size: int | None = None  # height and width to which images are scaled, in pixels
    column: str | None = None  # column whose values are the clients

    def require_only(self, allowed: Sequence[str], data: str) -> None:
        """Raise `UsageError` where something is said that `data`, which the sentence begins with, has no use for."""
        for name, value in vars(self).items():
            if value is not None and name not in allowed:
                raise UsageError(f"{data} has no use for {FIELDS[name]} = {value}: leave it out.")


AS_FOUND = Reading()
"""Nothing said."""

FIELDS = {
    "label": "label_column",
    "configuration": "hub_config",
    "holdout": "holdout",
    "size": "image_size",
    "column": "partition_column",
}
"""The field of a run behind each field of `Reading`."""


@dataclass(frozen=True)
class Source:
    """A data set that has been located and not yet read."""

    name: str  # as the user knows it
    folder: Path | None  # where its files lie; None: on the hub
    looked_in: tuple[Path, ...]  # folders where it could have lain
    hub: str  # organisation/name on the hub
    label: str | None  # column of the labels, where there is one of this name; else it is found out
    reading: Reading = AS_FOUND

    def __str__(self) -> str:
        return f"The data set in {self.folder}" if self.folder else f"The hub's data set {self.hub}"


@dataclass(frozen=True)
class Sample:
    """One image, not yet decoded, with its label."""

    image: Encoded
    label: object  # as it is stored
    name: str  # what a sentence calls the image
    owner: object = None  # value of the column of clients, where one is asked for


@dataclass(frozen=True)
class Samples:
    """The samples of one split."""

    stream: Iterable[Sample]  # to be gone through once
    count: int | None  # how many there are, where that is known beforehand
    classes: tuple[str, ...] | None  # their names where they are declared; a label is then a position in here
    label: str | None = None  # the column of labels, of samples in rows
