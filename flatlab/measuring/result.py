"""What every measurement returns: numbers with their errors, that print, plot, and turn into plain data and tables."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from analysis.eigenvalue import Eigenvalue
from flatlab.files import finite
from flatlab.measuring.subjects import Subject
from flatlab.tell import Tell, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Result(ABC):
    """A measurement of one model; each measure adds its fields."""

    title: ClassVar[str]

    about: Mapping[str, Any] = field(default_factory=dict)  # of what: checkpoint or model, data, loss, versions
    settings: Mapping[str, Any] = field(default_factory=dict)  # how
    seconds: float = math.nan  # that it took

    @abstractmethod
    def numbers(self) -> dict[str, Any]:
        """What was measured, as plain data."""

    @abstractmethod
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """What was measured, as a table: one mapping per row, all with the same keys."""

    @abstractmethod
    def plot(self) -> "Figure":
        """Draw it, as the command's --figure."""

    def summary(self) -> Sequence[Mapping[str, Any]]:
        """What is printed, as `rows`."""
        return self.rows()

    @property
    def finished(self) -> bool:
        """Whether all that was searched for met its tolerance, or is exact to rounding; else commands end with 3."""
        return all(value.converged or value.rounded for value in self.searched())

    def searched(self) -> Iterable[Eigenvalue]:
        """The eigenvalues among the numbers, of every matrix."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Return what the command of this name writes as JSON; a number that is not finite is None."""
        plain: dict[str, Any] = finite(
            {**self.about, "settings": {**self.settings}, **self.numbers(), "seconds": self.seconds}
        )
        return plain

    def to_frame(self) -> "DataFrame":
        """Return `rows` as a pandas DataFrame."""
        from pandas import DataFrame

        return DataFrame(self.rows())

    def __repr__(self) -> str:
        from pandas import DataFrame

        table = DataFrame(self.summary()).to_string(index=False, float_format="{:.4g}".format, na_rep="")
        return f"{self._title()}\n{table}"

    def heading(self) -> str:
        """What was measured, in words."""
        return self.title

    def _title(self) -> str:
        if not self.about:
            return self.heading()
        data, name = self.about["data"], self.about.get("checkpoint", self.about.get("model"))
        split = f"{data['split']}ing " if data["split"] == "train" else ""
        return f"{self.heading()} of {name}: {data['samples']:,} {split}samples of {data['dataset']}"


R = TypeVar("R", bound=Result)


def measured(
    open_: Callable[[], Subject],
    work: Callable[[Subject, Tell], R],
    settings: Mapping[str, Any],
    tell: Tell = silent,
) -> R:
    """Open a subject, do `work` on it, and return the result with what it is of, how it was made, and the time."""
    began = perf_counter()
    tell("opening")
    subject = open_()
    result = work(subject, tell)
    how = {**subject.settings, **settings}
    return replace(result, about=subject.about, settings=how, seconds=perf_counter() - began)
