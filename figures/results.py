"""The saved results of a grid, or of any folder of runs, as figures and tables read them."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from figures.errors import ResultsError
from figures.labels import algorithm_label, partition_label
from figures.saved import read_measurement, read_records
from figures.unconverged import is_unconverged
from flatlab.errors import FlatlabError, UsageError
from flatlab.federated.config import RunConfig, make_config, read_config
from flatlab.grid.plan import Grid, grid_cells, parse_grid, partition_name


class MissingResultsError(FlatlabError):
    """A figure or table cannot be made, because of results that are not there; the message says which."""


@dataclass(frozen=True)
class Result:
    """One run: its configuration, metrics and measurements, as they lie in its folder."""

    folder: Path
    config: RunConfig
    records: tuple[dict[str, Any], ...]  # lines of metrics.jsonl
    measured: Mapping[str, dict[str, Any]]  # kind: <final>.<kind>.json
    training: tuple[dict[str, Any], ...]  # eigs of the earlier checkpoints, by round
    trained: bool
    failure: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def partition(self) -> str:
        """Return "iid" or "dirichlet-<delta>"."""
        return partition_name(self.config)

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
        """Test accuracy after the last round; None before."""
        return self.curve[-1][1] if self.trained and self.curve else None

    @property
    def top_eigenvalue(self) -> float | None:
        """Of the Hessian at the end of training."""
        eigs = self.measured.get("eigs")
        return float(eigs["global"]["eigenvalues"][0]["value"]) if eigs else None

    @property
    def unconverged(self) -> bool:
        """Whether the top eigenvalue is not converged, or a larger one not excluded, as its measurement says."""
        eigs = self.measured.get("eigs")
        return eigs is not None and is_unconverged(eigs["global"]["eigenvalues"][0])

    @property
    def trace(self) -> float | None:
        """Of the Hessian at the end of training."""
        trace = self.measured.get("trace")
        return float(trace["trace"]["value"]) if trace else None


@dataclass(frozen=True)
class Results:
    """A folder of runs."""

    folder: Path
    grid: Grid | None  # that made it
    runs: tuple[Result, ...]
    absent: tuple[str, ...] = ()  # names of the grid's cells that are not begun

    @cached_property
    def zeta(self) -> float:
        """MAN's usual coefficient here: the most frequent one; the other runs with MAN are its sensitivity."""
        zetas = Counter(run.config.zeta for run in self.runs if run.config.man)
        return zetas.most_common(1)[0][0] if zetas else 0.0

    @cached_property
    def usual(self) -> tuple[Result, ...]:
        """Runs without MAN, and with the usual zeta."""
        return tuple(run for run in self.runs if not run.config.man or run.config.zeta == self.zeta)

    @cached_property
    def partitions(self) -> list[str]:
        """In the order of the runs."""
        return list(dict.fromkeys(run.partition for run in self.usual))

    @cached_property
    def algorithms(self) -> list[str]:
        """In the order of the runs."""
        return list(dict.fromkeys(run.config.algorithm for run in self.usual))

    def select(self, algorithm: str, partition: str, man: bool) -> list[Result]:
        """The usual runs of one cell of the tables, by seed."""
        key = (algorithm, partition, man)
        found = [run for run in self.usual if (run.config.algorithm, run.partition, run.config.man) == key]
        return sorted(found, key=lambda run: run.config.seed)

    def pair(self, has: Callable[[Result], object], what: str) -> tuple[Result, Result]:
        """The first two runs that differ in MAN alone and both satisfy `has`.

        Raises `MissingResultsError` naming `what` they should have.
        """
        for without in self.usual:
            if without.config.man or not has(without):
                continue
            for partner in self.select(without.config.algorithm, without.partition, man=True):
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


def read_results(folder: Path) -> Results:
    """Read every run in `folder`; raises `UsageError` if there is none.

    Where the folder's grid.toml says which runs belong to it and in what order, others are left out.
    """
    path = folder / "grid.toml"
    grid = parse_grid(path.read_text(encoding="utf-8"), str(path)) if path.exists() else None
    begun = sorted(path.parent.name for path in folder.glob("*/config.toml"))
    names = [cell.name for cell in grid_cells(grid)] if grid else begun
    try:
        runs = tuple(_read_run(folder / name) for name in names if name in begun)
    except ResultsError as error:
        raise UsageError(str(error)) from error
    if not runs:
        raise UsageError(f"There are no runs in {folder}; name a folder that `flatlab reproduce` filled.")
    return Results(folder, grid, runs, tuple(name for name in names if name not in begun))


def _read_run(folder: Path) -> Result:
    config = make_config(read_config(folder / "config.toml"), str(folder / "config.toml"))
    metrics, failure = folder / "metrics.jsonl", folder / "failure.txt"
    measured = {path.name.split(".")[1]: path for path in folder.glob("final.*.json")}
    training = (read_measurement(path, "eigs") for path in sorted(folder.glob("round-*.eigs.json")))
    return Result(
        folder=folder,
        config=config,
        records=tuple(read_records(metrics)),
        measured={kind: read_measurement(path, kind) for kind, path in measured.items()},
        training=tuple(sorted(training, key=lambda eigs: eigs["run"]["round"])),
        trained=(folder / "final.pt").exists(),
        failure=failure.read_text(errors="replace").partition("\n")[0] if failure.exists() else "",
    )
