"""What `flatlab verify --study` does: train the toy runs, measure every checkpoint, compare, conclude."""

import json as json_
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from analysis.theory.study import (
    CONTRASTS,
    ClaimVerdict,
    LayerMeasures,
    Measures,
    Subject,
    conclude,
    correlations,
    measure,
)
from analysis.theory.verdicts import Comparison, Correlation
from flatlab.cli.console import console, status, write_json
from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig, make_config
from flatlab.federated.engine.batched import BatchedEngine
from flatlab.federated.rounds import Run, train
from flatlab.federated.trial import tried
from flatlab.federated.world import make_world
from flatlab.files import finite
from flatlab.measuring.subjects import Measurement, open_checkpoint
from flatlab.runs.checkpoint import load_checkpoint, provenance
from flatlab.runs.folder import RunFolder
from flatlab.runs.measurements import is_current, measurement_path, read_measurement, save_measurement
from flatlab.runs.metrics import Record

PARTS = 4
"""A toy run is measured this often, at equal distances, the last time after its last round."""


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
                yield f"zeta-{zeta:g}-logits-{logits:g}-s{seed}", make_config(fields)


def read_plan(zetas: str, zeta_logits: float, seeds: int, rounds: int) -> Plan:
    """Raises `UsageError` unless `zetas` are positive numbers separated by commas."""
    try:
        numbers = tuple(float(word) for word in zetas.split(","))
    except ValueError:
        numbers = ()
    if not numbers or any(not 0 < zeta < math.inf for zeta in numbers):
        raise UsageError(f"--zetas are positive numbers separated by commas, as in 0.05,0.5, not {zetas!r}.")
    return Plan(tuple(dict.fromkeys(numbers)), zeta_logits, seeds, rounds)


def study_run(
    paths: Sequence[Path], measurement: Measurement, out: Path, plan: Plan, figures: Path | None, json: Path | None
) -> None:
    """Study the checkpoints in `paths`, or else the toy runs of `plan`; writes `out`/study.json.

    Runs and measurements that `out`, or the checkpoints' folders, already hold are not done again.
    """
    for path in paths:
        load_checkpoint(path)
    try:
        with status.status("study") as spinner:
            checkpoints = paths or _train(plan, out, spinner.update)  # measured as they come
            subjects = [_subject(path, measurement, spinner.update) for path in checkpoints]
    except KeyboardInterrupt as interruption:
        status.print("\nInterrupted. The same command goes on from here.")
        raise SystemExit(130) from interruption
    verdicts, correlated = conclude(subjects), correlations(subjects)
    if not any(verdict.comparisons[0].pairs for verdict in verdicts):
        raise UsageError(
            "There is nothing to compare: a study needs runs with MAN beside runs without it, alike in all else "
            "but the coefficient, with the same seed and round."
        )
    results = {
        "subjects": [{**finite(asdict(subject)), "setting": subject.setting} for subject in subjects],
        "verdicts": [_plain_verdict(verdict) for verdict in verdicts],
        "correlations": [finite(vars(correlation)) for correlation in correlated],
        "versions": provenance(),
    }
    write_json(out / "study.json", results)
    write_json(json, results)
    _print(verdicts, correlated)
    console.print(f"Numbers: [bold]{out / 'study.json'}[/bold]", soft_wrap=True)
    if figures:
        from figures.theory_heatmap import draw_theory_heatmap
        from figures.theory_scatter import draw_theory_scatter

        for draw, name in ((draw_theory_scatter, "theory-scatter"), (draw_theory_heatmap, "theory-heatmap")):
            drawn = draw(results, figures / name)
            console.print(f"Figure: [bold]{drawn[0]}[/bold], .pdf, .csv", soft_wrap=True)


def _train(plan: Plan, out: Path, tell: Callable[[str], None]) -> Iterator[Path]:
    """Train what is missing and yield the checkpoints of every run."""
    configs = list(plan.configs())
    for number, (name, config) in enumerate(configs, start=1):
        folder = out / name
        with RunFolder(folder).locked():
            _train_run(folder, config, partial(_tell_round, tell, f"run {number} of {len(configs)}: {name}"))
        yield from sorted(folder.glob("round-*.pt"))
        yield folder / "final.pt"


def _tell_round(tell: Callable[[str], None], run: str, record: Record) -> None:
    tell(f"{run}, round {record['round']}")


def _train_run(folder: Path, config: RunConfig, tell: Callable[[Record], None]) -> None:
    files = RunFolder(folder)
    files.require(config)
    if files.finished(config):
        return
    world = tried(make_world(config))
    run = Run(world, folder)
    run.resume()
    with BatchedEngine(world, torch.device("cpu")) as engine:  # all clients at once: twice as fast on such small models
        train(run, engine, tell)


def _subject(path: Path, measurement: Measurement, tell: Callable[[str], None]) -> Subject:
    """What is measured of a checkpoint, from `<checkpoint>.measures.json` where that is newer and made so."""
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    saved, settings = measurement_path(path, "measures"), {"samples": measurement.samples}
    newer = saved.exists() and saved.stat().st_mtime >= path.stat().st_mtime
    content = read_measurement(saved) if newer and is_current(saved, settings, checkpoint.fingerprint) else None
    if content is None:
        subject = open_checkpoint(path, measurement)
        measures = asdict(measure(subject.problem, lambda stage: tell(f"{path}: {stage}")))
        content = {**subject.about, "settings": settings, "measures": finite(measures)}
        save_measurement(path, "measures", content, for_tables=True)
    return Subject(
        checkpoint=str(path),
        group=json_.dumps({key: value for key, value in config.plain().items() if key not in _VARIED}),
        zeta=config.effective_zeta,
        zeta_logits=config.zeta_logits,
        seed=config.seed,
        round=checkpoint.round,
        accuracy=checkpoint.metrics.get("test_accuracy", math.nan),
        measures=_measures(content["measures"]),
    )


_VARIED = ("man", "zeta", "zeta_logits", "seed", "eval_every", "checkpoint_every")
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


def _print(verdicts: Sequence[ClaimVerdict], correlated: Iterable[Correlation]) -> None:
    for group in dict.fromkeys(verdict.group for verdict in verdicts):
        for contrast in CONTRASTS:
            own = [verdict for verdict in verdicts if (verdict.group, verdict.contrast) == (group, contrast)]
            if own:
                _print_verdicts(_title(contrast, group), own)
    console.print(
        "Each cell: x / y, for accuracy x - y in points, of runs with (x) and without (y) what the title names, paired "
        "by seed, with its 95 % interval. + supports the claim, - contradicts it, ? leaves it undecided: paired t "
        "test, p-values corrected for all comparisons (Holm). A claim is supported where every coefficient supports "
        "it, and contradicted where one contradicts it.\n",
        highlight=False,
    )
    table = Table(title="log mean|a|² entering a layer against log λmax", title_justify="left", **_BARE)
    for heading in ("layer", "varying", "points", "r", "95 %"):
        table.add_column(heading, justify="right" if heading in ("points", "r", "95 %") else "left")
    for c in sorted(correlated, key=lambda c: (c.layer, c.over)):
        interval = "too few seeds" if math.isnan(c.low) else f"{c.low:+.2f} to {c.high:+.2f}"
        table.add_row(c.layer or "all", c.over, str(c.points), f"{c.r:+.2f}", interval)
    console.print(table)


_BARE: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False}
_MARKS = {"supported": "+", "contradicted": "-", "undecided": "?"}
_COLOURS = {"supported": "green", "contradicted": "red", "undecided": "yellow"}


def _title(contrast: str, group: str) -> str:
    config = json_.loads(group)
    partition = "iid" if config["partition"] == "iid" else f"Dirichlet {config['delta']:g}"
    what = contrast[0].upper() + contrast[1:]
    return f"{what}: {config['dataset']}, {config['algorithm']}, {partition}, {config['rounds']} rounds"


def _print_verdicts(title: str, verdicts: Sequence[ClaimVerdict]) -> None:
    table = Table(title=title, title_justify="left", **_BARE)
    table.add_column("claim")
    for comparison in verdicts[0].comparisons:
        table.add_column(comparison.setting.replace(", ", "\n"), justify="right")
    table.add_column("verdict")
    for verdict in verdicts:
        cells = [_cell(comparison) for comparison in verdict.comparisons]
        answer = f"[{_COLOURS[verdict.answer]}]{verdict.answer}[/]"
        table.add_row(f"{verdict.claim.quantity}: {verdict.claim.direction}", *cells, answer)
    pairs = sorted({comparison.pairs for verdict in verdicts for comparison in verdict.comparisons})
    table.caption = f"{' to '.join(map(str, dict.fromkeys((pairs[0], pairs[-1]))))} pairs of runs"
    table.caption_justify = "left"
    console.print(table)


def _cell(comparison: Comparison) -> str:
    scale, form = (1.0, ".2f") if comparison.claim.ratio else (100.0, "+.1f")
    effect, low, high = (f"{scale * value:{form}}" for value in (comparison.effect, comparison.low, comparison.high))
    return f"{effect} {_MARKS[comparison.answer]}\n[dim]{low} to {high}[/dim]"
