"""The results of a grid, or of any folder of runs, as figures and tables take them: plain data, read elsewhere."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from figures.errors import MissingResultsError
from figures.labels import algorithm_label, partition_label
from figures.unconverged import BEHIND, doubt, worst


class Config(Protocol):
    """What is read of a run's configuration; all of it is in `plain()`."""

    @property
    def algorithm(self) -> str: ...  # noqa: D102
    @property
    def dataset(self) -> str: ...  # noqa: D102
    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def man(self) -> bool: ...  # noqa: D102
    @property
    def zeta(self) -> float: ...  # noqa: D102
    @property
    def effective_zeta(self) -> float: ...  # noqa: D102
    @property
    def rounds(self) -> int: ...  # noqa: D102
    @property
    def report(self) -> str: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    def own_options(self, *fields: str) -> list[str]: ...  # noqa: D102
    def plain(self) -> dict[str, Any]: ...  # noqa: D102


class Grid(Protocol):
    """What is read of the grid that made the runs."""

    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def target_accuracy(self) -> float | None: ...  # noqa: D102
    @property
    def target_note(self) -> str: ...  # noqa: D102
    @property
    def usual_zeta(self) -> float: ...  # noqa: D102
    @property
    def measure(self) -> Any: ...  # noqa: D102


@dataclass(frozen=True)
class Result:
    """One run: its configuration, metrics and measurements, as they lie in its folder."""

    folder: Path
    config: Config
    partition: str  # "iid", "dirichlet-<delta>", or another split's kind and parameter
    row: str  # the partition, and after "; " what sets the run apart from others beside MAN, zeta and seed
    records: tuple[dict[str, Any], ...]  # lines of metrics.jsonl
    measured: Mapping[str, dict[str, Any]]  # kind: <final>.<kind>.json, "settings" among them, and its name as "file"
    training: tuple[dict[str, Any], ...]  # eigs of the earlier checkpoints, by round
    trained: bool
    failure: str
    data: str = ""  # digest of what it was trained on; empty where that is not known

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def setting(self) -> str:
        """Algorithm, data set and partition, as a title."""
        return f"{algorithm_label(self.config.algorithm)}, {self.config.dataset}, {partition_label(self.partition)}"

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(round, test accuracy) of every evaluation."""
        return [(record["round"], record["test_accuracy"]) for record in self.records if "test_accuracy" in record]

    @property
    def accuracy(self) -> float | None:
        """Test accuracy after the last round; None before, and where that round's evaluation is not here."""
        evaluated = self.curve if self.trained else []
        return evaluated[-1][1] if evaluated and evaluated[-1][0] == self.config.rounds else None

    @property
    def top_eigenvalue(self) -> float | None:
        """Of the Hessian at the end of training."""
        eigs = self.measured.get("eigs")
        return float(eigs["global"]["eigenvalues"][0]["value"]) if eigs else None

    @property
    def trace(self) -> float | None:
        """Of the Hessian at the end of training."""
        trace = self.measured.get("trace")
        return float(trace["trace"]["value"]) if trace else None

    def doubt(self, measure: str) -> str:
        """The mark of one of its numbers: "!" not converged, "~" exact to rounding alone, as its measurement says."""
        kind, numbers = BEHIND.get(measure, ("", lambda saved: []))
        return worst(map(doubt, numbers(self.measured[kind]))) if kind in self.measured else ""


@dataclass(frozen=True)
class Results:
    """A folder of runs, no two of which are of one configuration, or on other data from one place."""

    folder: Path
    grid: Grid | None  # that made it
    runs: tuple[Result, ...]
    absent: Mapping[str, str] = field(default_factory=dict)  # cells of the grid that are not here: why
    grid_text: str = ""  # as it is written
    study: tuple[dict[str, Any], ...] = ()  # verdicts of `flatlab verify --study`
    outdated_study: str = ""  # why there are none, where the runs are other ones than those studied
    statements: Mapping[str, str] | None = None  # formulas of the theory's statements, by name

    @cached_property
    def _zetas(self) -> dict[tuple[str, str], float]:
        """MAN's usual coefficient by row and algorithm: the grid's.

        Without a grid it is the most frequent one, in the row or else in all of them.
        """
        if self.grid is not None:  # whose main cells may not be finished while those of its sensitivity are
            return {_row(run): self.grid.usual_zeta for run in self.runs}
        every = Counter(run.config.zeta for run in self.runs if run.config.man)
        found: dict[tuple[str, str], Counter[float]] = defaultdict(Counter)
        for run in self.runs:
            if run.config.man:
                found[_row(run)][run.config.zeta] += 1
        return {row: max(zetas, key=lambda zeta: (zetas[zeta], every[zeta])) for row, zetas in found.items()}

    @property
    def zetas(self) -> list[float]:
        """The coefficients of the usual runs with MAN, ascending."""
        return sorted({run.config.zeta for run in self.usual if run.config.man})

    @cached_property
    def usual(self) -> tuple[Result, ...]:
        """Runs without MAN, and with the usual zeta; the other runs with MAN are its sensitivity."""
        return tuple(run for run in self.runs if not run.config.man or run.config.zeta == self._zetas[_row(run)])

    @cached_property
    def rows(self) -> list[str]:
        """Partitions, and what sets runs apart, in the order of the runs."""
        return list(dict.fromkeys(run.row for run in self.usual))

    @cached_property
    def algorithms(self) -> list[str]:
        """In the order of the runs."""
        return list(dict.fromkeys(run.config.algorithm for run in self.usual))

    def select(self, algorithm: str, row: str, man: bool) -> list[Result]:
        """The usual runs of one cell of the tables, which differ in nothing but the seed, by seed."""
        found = [run for run in self.usual if (*_row(run), run.config.man) == (row, algorithm, man)]
        return sorted(found, key=lambda run: run.config.seed)

    def pair(self, has: Callable[[Result], object], what: str) -> tuple[Result, Result]:
        """The first two runs that differ in MAN alone, and what a preset tunes for it, and both satisfy `has`.

        Raises `MissingResultsError` naming `what` they should have.
        """
        for without in self.usual:
            if without.config.man or not has(without):
                continue
            for partner in self.select(without.config.algorithm, without.row, man=True):
                if partner.config.seed == without.config.seed and has(partner):
                    return without, partner
        raise MissingResultsError(f"no two runs, without and with MAN at the same seed, have {what}")

    def provenance(self, runs: Iterable[Result]) -> dict[str, str]:
        """What made the numbers of `runs`: versions and commits of their measurements, and their configurations."""
        runs = list(runs)
        versions: dict[str, list[str]] = {}
        for run in runs:
            for measured in run.measured.values():
                for key, value in measured.get("versions", {}).items():
                    versions.setdefault(key, []).append(value)
        configs = [run.config.plain() for run in runs]
        shared = {key: value for key, value in configs[0].items() if all(c.get(key) == value for c in configs)}
        return {
            **{key: ", ".join(dict.fromkeys(values)) for key, values in versions.items()},
            "runs": " ".join(run.name for run in runs),
            "configuration": json.dumps(shared),
        }


def require_alike(runs: Sequence[Result], kind: str) -> None:
    """Raise `MissingResultsError`, with the names of two, where measurements of `kind` were not all made in one way."""
    require_one_way((_made(run, kind), run.measured[kind]["settings"]) for run in runs if kind in run.measured)


def require_same_round(runs: Sequence[Result], kind: str) -> None:
    """Raise `MissingResultsError` where measurements of `kind` of the `runs` of one row are of different rounds."""
    require_one_way(
        (_made(run, kind), {"round": run.measured[kind].get("run", {}).get("round")})
        for run in runs
        if kind in run.measured
    )


def require_one_way(made: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise `MissingResultsError` unless measurements, by their names, have the same settings, as far as is known."""
    known: dict[str, tuple[str, Any]] = {}
    for name, settings in made:
        for setting, value in settings.items():
            first, usual = known.setdefault(setting, (name, value))
            if value != usual:
                one, other = ("unset" if each is None else each for each in (usual, value))
                raise MissingResultsError(
                    f"{first} was made with {setting} {one}, {name} with {other}: measure them alike"
                )


def _made(run: Result, kind: str) -> str:
    return f"{run.measured[kind].get('file', f'final.{kind}.json')} of {run.name}"


def _row(run: Result) -> tuple[str, str]:
    return run.row, run.config.algorithm
