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
from flatlab.errors import UsageError
from flatlab.federated.config import PARTS_OF_MAN, RunConfig
from flatlab.federated.partition.names import NAMED_PARAMETERS, partition_name
from flatlab.grid.cell_progress import read_failure
from flatlab.grid.finished import config_of, finished, require_last_evaluation
from flatlab.grid.plan import grid_cells, parse_grid, read_grid_text
from flatlab.runs.fingerprint import Fingerprint, fingerprint, require_same_data, settled
from flatlab.runs.folder import RunFolder, by_round, read_head
from flatlab.runs.forms import FORMS, Digests
from flatlab.runs.measurements import is_of, measurement_path, settings_of
from flatlab.runs.saved import read_measurement, read_records, read_study

COMPARED = ("man", "zeta", "seed")
"""In what the runs of one row differ."""

HARMLESS = ("checkpoint_every",)
"""Fields that change no number."""

NOT_BEGUN = "not begun."


def read_results(folder: Path) -> Results:
    """Read every run in `folder`; raises `UsageError` if there is none, or two cannot stand side by side.

    Where the folder's grid.toml says which runs belong to it and in what order, others are left out, and so is a run
    that is not the one that the grid now describes.
    """
    path = folder / "grid.toml"
    text = read_grid_text(str(path)) if path.exists() else ""
    grid = parse_grid(text, str(path)) if path.exists() else None
    cells = {cell.name: cell.config for cell in grid_cells(grid)} if grid else {}
    begun = cells or sorted(path.parent.name for path in folder.glob("*/config.toml"))
    absent = {
        name: _another_run(folder / name, config) if config_of(folder / name) else NOT_BEGUN
        for name, config in cells.items()
    }
    absent = {name: reason for name, reason in absent.items() if reason}
    kept = grid.measure.keep_clients if grid else ()
    runs = [_read_run(folder / name, kept) for name in begun if name not in absent]
    if not runs:
        found = next((reason for reason in absent.values() if reason != NOT_BEGUN), "")
        raise UsageError(found or f"There are no runs in {folder}; name a folder that `flatlab reproduce` filled.")
    study, outdated = _study(folder)
    return Results(
        folder=folder,
        grid=grid,
        runs=_in_rows(runs, tuned=grid is not None and grid.preset is not None),
        absent=absent,
        grid_text=text,
        study=study,
        outdated_study=outdated,
        statements=STATEMENTS,
    )


def _study(folder: Path) -> tuple[tuple[dict[str, Any], ...], str]:
    """The verdicts of a study in `folder`; none, and why, where one of its checkpoints here is another now."""
    path = folder / "study.json"
    found = read_study(path) if path.exists() else {}
    for subject in found.get("subjects", ()):
        studied, kept = Path(subject["checkpoint"]), subject.get("fingerprint")
        here = folder / studied.parent.name / studied.name
        elsewhere = studied.exists() and studied.resolve() != here.resolve()  # of another folder of runs
        if not kept or elsewhere or not here.exists():
            continue
        of = Fingerprint(**Digests.model_validate(kept).model_dump())
        if not read_head(here).fingerprint.agrees(of):
            return (), f"{here} is another checkpoint than that of study.json: verify --study again"
    return tuple(found.get("verdicts", ())), ""


def _another_run(folder: Path, config: RunConfig) -> str:
    """Say in which fields the run in `folder` is not the one that the grid describes; empty where it is."""
    files = RunFolder(folder)
    found = files.config()
    if found is not None and config.model == "auto":  # what that stands for may need data that are not here
        config = config.model_copy(update={"model": settled(found).model})
    return files.refusal(config, "the grid says", "`flatlab reproduce` leaves it alone, and so do tables and figures")


def _read_run(folder: Path, kept: Sequence[int]) -> Result:
    """The run in `folder`, with its clients' curvature after the last of the rounds `kept`.

    Raises `UsageError` where what lies there is not all of one run.
    """
    asked = config_of(folder)
    assert asked is not None  # or nothing would have begun there
    config = settled(asked)
    if refusal := RunFolder(folder).refusal(config, "config.toml says", "bring back the final.pt of that run"):
        raise UsageError(refusal)
    final = finished(config, folder)
    records = read_records(folder / "metrics.jsonl")
    if final is not None:
        require_last_evaluation(final, records, folder)
    of = fingerprint(config, final.data if final else "")
    of_final = final.fingerprint if final else of
    kinds = {kind: folder / f"final.{kind}.json" for kind in FORMS}
    if local := _local(folder, kept):
        kinds["local"] = local
    earlier = [_measured(path, "eigs", of) for path in by_round(folder.glob("round-*.eigs.json"))]
    return Result(
        folder=folder,
        config=config,
        partition=partition_name(config),
        row=partition_name(config),
        records=tuple(records),
        measured={
            kind: _measured(path, kind, of if kind == "local" else of_final)
            for kind, path in kinds.items()
            if path.exists()
        },
        training=tuple(sorted(earlier, key=lambda eigs: eigs["run"]["round"])),
        trained=final is not None,
        failure=read_failure(folder),
        data=of.data,
    )


def _local(folder: Path, kept: Sequence[int]) -> Path | None:
    """The clients' curvature of the last round `kept`, and no other; of the last that is here if no round is named."""
    if kept:  # a cell measured before the grid named another round has that of the other still
        return measurement_path(RunFolder(folder).kept_clients(max(kept)), "local")
    return next(reversed(by_round(folder.glob("clients-*.local.json"))), None)


def _measured(path: Path, kind: str, of: Fingerprint) -> dict[str, Any]:
    """A measurement with how it was made; raises `UsageError` where it is not of the run `of`, or of its checkpoint."""
    content = read_measurement(path, kind)
    if not is_of(content, of) or _is_of_another(content, path.with_name(f"{path.name.split('.')[0]}.pt")):
        raise UsageError(
            f"{path} was not made of the run that is in its folder, but of an earlier one with other settings, data or "
            "weights: remove it, or measure again."
        )
    return {**content, "settings": dict(settings_of(content)), "file": path.name}


def _is_of_another(content: Mapping[str, Any], checkpoint: Path) -> bool:
    """Whether the checkpoint is here, can be read, and is not what was measured; of the last its run's head says so."""
    if checkpoint.name == "final.pt" or not checkpoint.exists():
        return False
    try:
        return not is_of(content, read_head(checkpoint).fingerprint)
    except UsageError:
        return False


def _in_rows(runs: Sequence[Result], *, tuned: bool) -> tuple[Result, ...]:
    """The runs, each with the name of its row.

    Hyperparameters are an algorithm's own and set no two algorithms apart; all other fields do, since presets have one
    value of each for all algorithms. Where a preset `tuned` the runs, hyperparameters set none apart: within an
    algorithm and partition they differ only as the preset has others for MAN, and the two are the paper's pair.
    """
    plain = _beside_man(runs, [_plain(run) for run in runs])
    _refuse_duplicates(runs, plain)
    require_same_data((run.folder, run.config, run.data) for run in runs)
    everywhere = _differing([_without(fields, ("hyper",)) for fields in plain])
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for run, fields in zip(runs, plain, strict=True):
        alike[run.config.algorithm, run.partition].append(fields)
    rows = []
    for run, fields in zip(runs, plain, strict=True):
        naming = everywhere | _differing(alike[run.config.algorithm, run.partition])
        naming -= {name for name in naming if tuned and name.startswith("hyper.")}
        words = [_word(name, value) for name, value in fields.items() if name in naming]
        rows.append(replace(run, row="; ".join([run.partition, ", ".join(words)]) if words else run.partition))
    return tuple(rows)


def _plain(run: Result) -> dict[str, Any]:
    """The fields that set a run's row apart, hyperparameters by name."""
    fields = _without(run.config.plain(), (*COMPARED, *HARMLESS, "algorithm", "partition", *NAMED_PARAMETERS, "hyper"))
    hyper = {f"hyper.{name}": value for name, value in run.config.plain().get("hyper", {}).items()}
    return fields | hyper


def _beside_man(runs: Sequence[Result], plain: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs without MAN with those of its parts that all runs with it have, of their algorithm and partition."""
    under: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run, fields in zip(runs, plain, strict=True):
        if run.config.man:
            under[run.config.algorithm, run.partition].append(fields)
    found = []
    for run, fields in zip(runs, plain, strict=True):
        beside = [] if run.config.man else under[run.config.algorithm, run.partition]
        parts = [{name: each[name] for name in PARTS_OF_MAN if name in each} for each in beside]
        found.append(fields | parts[0] if parts and all(part == parts[0] for part in parts) else fields)
    return found


def _without(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name.partition(".")[0] not in names}


def _differing(found: Sequence[Mapping[str, Any]]) -> set[str]:
    names = {name for fields in found for name in fields}
    return {name for name in names if len({json.dumps(fields.get(name)) for fields in found}) > 1}


def _word(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if name == "dataset" else f"{name.removeprefix('hyper.')} {text}"


def _refuse_duplicates(runs: Sequence[Result], plain: Sequence[Mapping[str, Any]]) -> None:
    """Raise `UsageError` where two runs would stand for one seed."""
    seen: dict[str, Path] = {}
    for run, fields in zip(runs, plain, strict=True):
        config: Any = run.config
        key = json.dumps([config.algorithm, run.partition, config.man, config.effective_zeta, config.seed, fields])
        if key in seen:
            raise UsageError(
                f"{seen[key]} and {run.folder} hold the same run, of the same seed: a table counts it once, so move "
                "one of them elsewhere."
            )
        seen[key] = run.folder
