"""The saved results of a grid, or of any folder of runs, read for figures and tables.

Runs that differ in more than MAN, zeta and seed are told apart here: each belongs to a row, which is named after what
sets it apart.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.theory.statements import STATEMENTS
from figures.results import Result, Results
from flatlab.errors import UsageError, shown
from flatlab.federated.config import make_config, read_config
from flatlab.federated.partition.names import partition_name
from flatlab.grid.plan import grid_cells, parse_grid
from flatlab.runs.fingerprint import settled
from flatlab.runs.measurements import settings_of
from flatlab.runs.saved import read_measurement, read_records, read_study

COMPARED = ("man", "zeta", "seed")
"""In what the runs of one row differ."""

OF_THE_METHOD = ("hyper", "lr", "lr_decay", "weight_decay", "clip", "local_epochs", "batch_size", "report")
"""Fields that presets choose for an algorithm: between two algorithms these say nothing."""

HARMLESS = ("checkpoint_every",)
"""Fields that change no number."""


def read_results(folder: Path) -> Results:
    """Read every run in `folder`; raises `UsageError` if there is none, or two are of one configuration.

    Where the folder's grid.toml says which runs belong to it and in what order, others are left out.
    """
    path = folder / "grid.toml"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    grid = parse_grid(text, str(path)) if text else None
    begun = sorted(path.parent.name for path in folder.glob("*/config.toml"))
    names = [cell.name for cell in grid_cells(grid)] if grid else begun
    runs = [_read_run(folder / name) for name in names if name in begun]
    if not runs:
        raise UsageError(f"There are no runs in {folder}; name a folder that `flatlab reproduce` filled.")
    study = folder / "study.json"
    return Results(
        folder=folder,
        grid=grid,
        runs=_in_rows(runs),
        absent=tuple(name for name in names if name not in begun),
        grid_text=text,
        study=tuple(read_study(study)) if study.exists() else (),
        statements=STATEMENTS,
    )


def _read_run(folder: Path) -> Result:
    config = settled(make_config(read_config(folder / "config.toml"), str(folder / "config.toml")))
    metrics, failure = folder / "metrics.jsonl", folder / "failure.txt"
    kinds = {path.name.split(".")[1]: path for path in folder.glob("final.*.json")}
    measured = {kind: read_measurement(path, kind) for kind, path in kinds.items()}
    training = (read_measurement(path, "eigs") for path in sorted(folder.glob("round-*.eigs.json")))
    return Result(
        folder=folder,
        config=config,
        partition=partition_name(config),
        row=partition_name(config),
        records=tuple(read_records(metrics)),
        measured={kind: {**content, "settings": dict(settings_of(content))} for kind, content in measured.items()},
        training=tuple(sorted(training, key=lambda eigs: eigs["run"]["round"])),
        trained=(folder / "final.pt").exists(),
        failure=failure.read_text(errors="replace").partition("\n")[0] if failure.exists() else "",
    )


def _in_rows(runs: Sequence[Result]) -> tuple[Result, ...]:
    """The runs, each with the name of its row."""
    plain = [_plain(run) for run in runs]
    _refuse_duplicates(runs, plain)
    everywhere = _differing([_without(fields, OF_THE_METHOD) for fields in plain])
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for run, fields in zip(runs, plain, strict=True):
        alike[run.config.algorithm, run.partition].append(fields)
    rows = []
    for run, fields in zip(runs, plain, strict=True):
        naming = everywhere | _differing(alike[run.config.algorithm, run.partition])
        words = [_word(name, value) for name, value in fields.items() if name in naming]
        rows.append(replace(run, row="; ".join([run.partition, ", ".join(words)]) if words else run.partition))
    return tuple(rows)


def _plain(run: Result) -> dict[str, Any]:
    """The fields that set a run's row apart, hyperparameters by name, and the data where a measurement says them."""
    fields = _without(run.config.plain(), (*COMPARED, *HARMLESS, "algorithm", "partition", "delta", "hyper"))
    hyper = {f"hyper.{name}": value for name, value in run.config.plain().get("hyper", {}).items()}
    return fields | hyper


def _without(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name.partition(".")[0] not in names}


def _differing(found: Sequence[Mapping[str, Any]]) -> set[str]:
    names = {name for fields in found for name in fields}
    return {name for name in names if len({json.dumps(fields.get(name)) for fields in found}) > 1}


def _word(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else shown(value)
    return text if name == "dataset" else f"{name.removeprefix('hyper.')} {text}"


def _refuse_duplicates(runs: Sequence[Result], plain: Sequence[Mapping[str, Any]]) -> None:
    """Raise `UsageError` where two runs would stand for one seed, or one data set's name for two sets of images."""
    seen: dict[str, Path] = {}
    data: dict[str, tuple[str, Path]] = {}
    for run, fields in zip(runs, plain, strict=True):
        config: Any = run.config
        key = json.dumps([config.algorithm, run.partition, config.man, config.effective_zeta, config.seed, fields])
        if key in seen:
            raise UsageError(
                f"{seen[key]} and {run.folder} hold the same run, of the same seed: a table counts it once, so move "
                "one of them elsewhere."
            )
        seen[key] = run.folder
        digests = (content.get("fingerprint") for content in run.measured.values())
        digest = next((d["data"] for d in digests if isinstance(d, dict) and d.get("data")), "")
        of = json.dumps([config.dataset, fields.get("train_samples"), fields.get("test_samples"), config.seed])
        kept, first = data.setdefault(of, (digest, run.folder)) if digest else ("", run.folder)
        if digest != kept:
            raise UsageError(
                f"{first} and {run.folder} were trained on different images, both called {config.dataset}: their "
                "numbers cannot be compared; keep the runs of one data set."
            )
