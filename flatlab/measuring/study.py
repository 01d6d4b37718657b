"""What `flatlab verify --study` does: train the toy runs, measure every checkpoint, compare, conclude."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from analysis.theory.study import (
    ClaimVerdict,
    LayerMeasures,
    Measures,
    Subject,
    conclude,
    correlations,
    measure,
    unpaired,
)
from analysis.theory.verdicts import Correlation
from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig, make_config
from flatlab.federated.execution import Execution, carry_out
from flatlab.federated.rounds import Run
from flatlab.federated.spelling import in_words
from flatlab.files import finite, json_text, write_text
from flatlab.measuring.subjects import Measurement, open_checkpoint
from flatlab.runs.checkpoint import load_checkpoint, provenance
from flatlab.runs.fingerprint import Fingerprint, require_same_data
from flatlab.runs.folder import RunFolder, read_head
from flatlab.runs.measurements import is_current, kept_measurement, measurement_path, save_measurement
from flatlab.runs.metrics import Record
from flatlab.runs.saved import read_study
from flatlab.tell import Tell, silent

PARTS = 4
"""A toy run is measured this often, at equal distances, the last time after its last round."""

_NOTHING = (
    "There is nothing to compare: a study needs runs with MAN beside runs without it, alike in all else but the "
    "coefficient, with the same seed and round."
)


@dataclass(frozen=True)
class Plan:
    """The toy runs: digits, 20 clients, Dirichlet 0.3, MLP 64-64-32-10 (the defaults of a run)."""

    zetas: tuple[float, ...]
    zeta_logits: float
    seeds: int
    rounds: int

    def configs(self) -> Iterator[tuple[str, RunConfig]]:
        """Every run with the name of its folder, seed by seed, so that what is there early can be compared."""
        settings = list(product(dict.fromkeys((0.0, self.zeta_logits)), (0.0, *self.zetas)))
        every = math.ceil(self.rounds / PARTS)
        for seed in range(self.seeds):
            for logits, zeta in settings:
                fields: dict[str, Any] = {
                    "model": "mlp",
                    "seed": seed,
                    "rounds": self.rounds,
                    "checkpoint_every": every,
                    "eval_every": every,
                }
                if zeta or logits:
                    fields |= {"man": True, "zeta": zeta, "zeta_logits": logits}
                yield f"zeta-{in_words(zeta)}-logits-{in_words(logits)}-s{seed}", make_config(fields)


def read_plan(zetas: str, zeta_logits: float, seeds: int, rounds: int) -> Plan:
    """Raises `UsageError` unless `zetas` are positive numbers separated by commas."""
    try:
        numbers = tuple(float(word) for word in zetas.split(","))
    except ValueError:
        numbers = ()
    if not numbers or any(not 0 < zeta < math.inf for zeta in numbers):
        raise UsageError(f"--zetas are positive numbers separated by commas, as in 0.05,0.5, not {zetas!r}.")
    return Plan(tuple(dict.fromkeys(numbers)), zeta_logits, seeds, rounds)


@dataclass(frozen=True)
class Study:
    """What was measured of every checkpoint, and what that says of each claim."""

    subjects: Sequence[Subject]
    verdicts: Sequence[ClaimVerdict]
    correlations: Sequence[Correlation]
    fingerprints: Sequence[Fingerprint]  # of the subjects' checkpoints

    @property
    def alone(self) -> list[str]:
        """The checkpoints that no verdict is about."""
        return unpaired(self.subjects)

    def to_dict(self) -> dict[str, Any]:
        """Return what study.json holds."""
        return {
            "subjects": [
                {**finite(asdict(subject)), "setting": subject.setting, "fingerprint": of.plain()}
                for subject, of in zip(self.subjects, self.fingerprints, strict=True)
            ],
            "verdicts": [_plain_verdict(verdict) for verdict in self.verdicts],
            "correlations": [finite(vars(correlation)) for correlation in self.correlations],
            "versions": provenance(),
        }


def make_study(paths: Sequence[Path], measurement: Measurement, out: Path, plan: Plan, tell: Tell = silent) -> Study:
    """Study the checkpoints in `paths`, or else the toy runs of `plan`, and write `out`/study.json.

    Runs and measurements that `out`, or the checkpoints' folders, already hold are not done again. Raises `UsageError`
    for a bad file, for runs that cannot stand side by side, where no two can be compared, and where `out` holds a study
    of other checkpoints.
    """
    _require_comparable(paths)
    _require_own_place(out / "study.json", paths or [out / name / "final.pt" for name, _ in plan.configs()])
    checkpoints = paths or _train(plan, out, tell)  # measured as they come
    subjects = [_subject(path, measurement, tell) for path in checkpoints]
    fingerprints = [read_head(Path(subject.checkpoint)).fingerprint for subject in subjects]
    study = Study(subjects, conclude(subjects), list(correlations(subjects)), fingerprints)
    if not any(verdict.comparisons[0].pairs for verdict in study.verdicts):
        raise UsageError(_NOTHING)
    write_text(out / "study.json", json_text(study.to_dict()))
    return study


def _require_comparable(paths: Sequence[Path]) -> None:
    """Raise `UsageError` before anything is measured.

    Where one run is named twice at one round, two are of other data under one name, or no two differ in MAN alone.
    """
    seen: dict[tuple[object, ...], Path] = {}
    penalised: dict[tuple[object, ...], set[tuple[bool, bool]]] = defaultdict(set)
    trained: list[tuple[Path, RunConfig, str]] = []
    for path in paths:
        checkpoint = load_checkpoint(path)
        config = checkpoint.config
        man = (config.effective_zeta, config.zeta_logits, config.man_layers)
        place = (_group(config), man, config.seed, checkpoint.round)
        if place in seen:
            raise UsageError(
                f"{seen[place]} and {path} are of the same run, of the same seed and round: a study counts it once, so "
                "name one of them."
            )
        seen[place] = path
        how = config.effective_zeta > 0, config.zeta_logits > 0
        penalised[_group(config), config.seed, checkpoint.round].add(how)
        trained.append((path, config, checkpoint.data))
    require_same_data(trained)
    if paths and all(len(found) == 1 for found in penalised.values()):
        raise UsageError(_NOTHING)


def _require_own_place(path: Path, checkpoints: Sequence[Path]) -> None:
    """Raise `UsageError` where `path` is a study that shares no run with that of `checkpoints`."""
    kept = read_study(path).get("subjects", ()) if path.exists() else ()
    ours = {where for checkpoint in checkpoints for where in _signs(checkpoint, path)}
    ours |= {_words(read_head(run).fingerprint.plain()) for run in checkpoints if run.exists()}
    theirs = {where for subject in kept for where in _signs(Path(subject["checkpoint"]), path)}
    theirs |= {_words(subject["fingerprint"]) for subject in kept if subject.get("fingerprint")}
    if theirs and not ours & theirs:
        raise UsageError(f"{path} is a study of other runs: name another folder with --out, or move the file away.")


def _signs(checkpoint: Path, study: Path) -> set[str]:
    """Where the run is: as it was named or, where nothing is there any more, beside the study."""
    named, beside = checkpoint.absolute().parent, study.absolute().parent / checkpoint.parent.name
    return {str(beside if beside.exists() and not named.exists() else named)}


def _words(fingerprint: Mapping[str, str]) -> str:
    return json.dumps(fingerprint, sort_keys=True)


def _train(plan: Plan, out: Path, tell: Tell) -> Iterator[Path]:
    """Train what is missing and yield the checkpoints of every run."""
    at_once = Execution(engine="batched", device="cpu")  # all clients: twice as fast on such small models
    configs = list(plan.configs())
    for number, (name, config) in enumerate(configs, start=1):
        carry_out(config, out / name, at_once, watch=partial(_told, tell, f"run {number} of {len(configs)}: {name}"))
        files = RunFolder(out / name)
        yield from (*files.earlier, files.final)


@contextmanager
def _told(tell: Tell, name: str, run: Run) -> Iterator[Callable[[Record], None]]:
    yield lambda record: tell(f"{name}, round {record['round']}")


def _subject(path: Path, measurement: Measurement, tell: Tell) -> Subject:
    """What is measured of a checkpoint, from `<checkpoint>.measures.json` where that is newer and made so."""
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    saved, settings = measurement_path(path, "measures"), {"samples": measurement.samples}
    content = kept_measurement(saved) if is_current(saved, settings, checkpoint.fingerprint) else None
    if content is not None and not content.get("fingerprint", {}).get("weights"):  # of an earlier version
        content = content if saved.stat().st_mtime >= path.stat().st_mtime else None
    if content is None:
        subject = open_checkpoint(path, measurement)
        measures = asdict(measure(subject.problem, lambda stage: tell(f"{path}: {stage}")))
        content = {**subject.about, "settings": settings, "measures": finite(measures)}
        save_measurement(path, "measures", content, for_tables=True)
    return Subject(
        checkpoint=str(path),
        group=_group(config),
        zeta=config.effective_zeta,
        zeta_logits=config.zeta_logits,
        seed=config.seed,
        round=checkpoint.round,
        accuracy=checkpoint.metrics.get("test_accuracy", math.nan),
        measures=_measures(content["measures"]),
        man_layers=config.man_layers if config.man else (),
    )


def _group(config: RunConfig) -> str:
    """What a run shares with those that it is compared with."""
    return json.dumps({key: value for key, value in config.plain().items() if key not in _VARIED})


_VARIED = ("man", "zeta", "zeta_logits", "man_layers", "seed", "eval_every", "checkpoint_every")
"""Fields in which runs that are compared, or paired, may differ."""


def _measures(plain: dict[str, Any]) -> Measures:
    def layer(numbers: dict[str, Any]) -> LayerMeasures:
        known: dict[str, Any] = {key: math.nan if value is None else value for key, value in numbers.items()}
        return LayerMeasures(**known)

    return Measures(**{**plain, "layers": [layer(numbers) for numbers in plain["layers"]]})


def _plain_verdict(verdict: ClaimVerdict) -> dict[str, Any]:
    plain: dict[str, Any] = finite(asdict(verdict))
    comparisons = [
        {**{key: value for key, value in own.items() if key != "claim"}, "answer": comparison.answer}
        for own, comparison in zip(plain["comparisons"], verdict.comparisons, strict=True)
    ]
    return {**plain, "comparisons": comparisons, "answer": verdict.answer}
