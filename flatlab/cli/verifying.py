"""What `flatlab verify` does without --study: compute, show, save, and fail where a statement does."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table

from analysis.errors import AsymmetryError
from analysis.problem import Problem
from analysis.theory.battery import ToyChecks, along_training, battery, shifts
from analysis.theory.chain import Chain, chain
from analysis.theory.statements import CONDITIONS, STATEMENTS, Check, Interval, Tally, broken, tally
from flatlab.cli.console import console, say, status, write_json
from flatlab.cli.unsaved import fail_if, noted, warn_of_unwritable
from flatlab.errors import FlatlabError
from flatlab.federated.world import make_world
from flatlab.malloc import keep_freed_memory
from flatlab.measuring.samples import own_share
from flatlab.measuring.subjects import Measurement, Subject, open_checkpoint
from flatlab.runs.checkpoint import load_checkpoint, provenance
from flatlab.runs.measurements import measurement_path, save_measurement

DEFAULT_SAMPLES = 200


def verify_toys(figures: Path | None, json: Path | None) -> None:
    """Check the statements on toys; raises `FlatlabError` where one fails that must hold."""
    keep_freed_memory()
    began = time.perf_counter()
    with status.status("Toys") as spinner:
        cases = list(battery(spinner.update))
        moments = along_training(spinner.update)
        moved = shifts(spinner.update)
    checks = [check for case in cases for check in case.checks]
    results: dict[str, Any] = {
        "cases": len(cases),
        "statements": [_plain_tally(row) for row in tally(checks)],
        "toys": [_plain_case(case) for case in cases],
        "training": [{**vars(m), "slack1": m.slack1, "slack2": m.slack2} for m in moments],
        "shift": [asdict(shift) for shift in moved],
        "seconds": time.perf_counter() - began,
        "versions": provenance(),
    }
    _print_tallies(f"{len(cases)} toy networks, dense Hessians in float64", tally(checks))
    _print_toy_findings(cases, results["shift"])
    unsaved: list[str] = []
    with noted(unsaved):
        write_json(json, results)
    if figures:
        from figures.theory_shift import draw_theory_shift
        from figures.theory_slack import draw_theory_slack

        with noted(unsaved):
            _say_drawn(draw_theory_slack(results, figures / "theory-slack"))
            _say_drawn(draw_theory_shift(results, figures / "theory-shift"))
    console.print(f"{results['seconds']:.0f} s")
    _fail_if_broken(checks)
    fail_if(unsaved)


def verify_checkpoints(
    paths: Sequence[Path], measurement: Measurement, figures: Path | None, json: Path | None
) -> None:
    """Check the statements on every checkpoint and write `<checkpoint>.verify.json` beside it."""
    keep_freed_memory()
    for path in paths:
        load_checkpoint(path)  # every file is looked at before the first is worked on
    results: list[dict[str, Any]] = []
    checks: list[Check] = []
    unsaved: list[str] = []
    warn_of_unwritable([*(measurement_path(path, "verify") for path in paths), *filter(None, (json,))])
    for path in paths:
        subject, clients = open_with_clients(path, measurement)
        with status.status(str(path)) as spinner:
            found = chain(subject.problem, clients, lambda stage, path=path: spinner.update(f"{path}: {stage}"))  # type: ignore[misc]
        result = as_json(subject, found)
        with noted(unsaved):
            say(save_measurement(path, "verify", result).note)
        _print_chain(path, subject.available, found)
        results.append(result)
        checks += found.checks
    with noted(unsaved):
        write_json(json, results[0] if len(results) == 1 else {"checkpoints": results})
    if figures:
        from figures.theory_chain import draw_theory_chain

        with noted(unsaved):
            _say_drawn(draw_theory_chain(results, figures / "theory-chain"))
    _fail_if_broken(checks)
    fail_if(unsaved)


def open_with_clients(path: Path, measurement: Measurement) -> tuple[Subject, dict[str, Problem]]:
    """The checkpoint's loss in float64 on the samples that every command draws, and on those that each client holds.

    Raises `UsageError` for a bad file, `FlatlabError` where products are not even symmetric.
    """
    try:
        subject = open_checkpoint(path, replace(measurement, dtype="float64", most=DEFAULT_SAMPLES))
    except AsymmetryError as error:
        raise FlatlabError(str(error)) from error
    assert subject.places is not None
    world = make_world(load_checkpoint(path).config, measurement.data_root)
    held = {str(k): subject.places[np.isin(subject.places, part)] for k, part in enumerate(world.parts)}
    clients = {
        name: subject.problem.on(own_share(world.data, places, torch.float64, measurement.device, f"Client {name}"))
        for name, places in held.items()
        if len(places)
    }
    return subject, clients


def as_json(subject: Subject, found: Chain) -> dict[str, Any]:
    """The chain as plain data; every number that is not exact as [low, high]."""
    layers = [
        {name: _ends(value) if isinstance(value, Interval) else value for name, value in vars(layer).items()}
        for layer in found.layers
    ]
    return {
        **subject.about,
        "settings": {"samples": found.samples, "dtype": "float64"},
        "loss": found.loss,
        "top": _ends(found.top),
        "smallest": _ends(found.smallest),
        "layers": layers,
        "checks": [
            {
                "statement": check.statement,
                "layer": check.layer,
                "claimed": check.claimed,
                "outcome": check.outcome,
                "left": _ends(check.left),
                "right": _ends(check.right),
                "slack": _finite(check.slack),
            }
            for check in found.checks
        ],
        "seconds": found.seconds,
    }


def _ends(interval: Interval) -> list[float | None]:
    return [_finite(interval.low), _finite(interval.high)]


def _finite(number: float) -> float | None:
    """JSON has no infinity."""
    return number if math.isfinite(number) else None


def _print_chain(path: Path, available: int, found: Chain) -> None:
    """Every layer's bounds, then the statements."""
    count = f"{found.samples} of {available:,} training samples"
    console.print(f"{path}: {count}, float64", markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer")
    for heading in ("mean|ã|²", "λmax", "≤ A1", "≤ A2", "≤ A3"):
        table.add_column(heading, justify="right")
    for layer in found.layers:
        bounds = [_number(bound) for bound in (layer.top, layer.a1, layer.a2, layer.a3)]
        table.add_row(layer.name, "" if layer.norm2 is None else f"{layer.norm2:.4g}", *bounds)
    console.print(table)
    console.print(f"network: λmax = {_number(found.top)}, λmin = {_number(found.smallest)}", highlight=False)
    for statement, formula in STATEMENTS.items():
        own = [check for check in found.checks if check.statement == statement]
        if own:
            console.print(f"{statement:6} {formula}: {_sentence(own)}", highlight=False, soft_wrap=True)
    console.print(f"{found.seconds:.0f} s\n", highlight=False)


def _sentence(checks: Sequence[Check]) -> str:
    """What one statement's checks on one network came to."""
    if len(checks) == 1 and not checks[0].layer:
        (check,) = checks
        sides = f"{_number(check.left)} and {_number(check.right)}"
        if check.claimed:
            return f"{sides}, {_WORDS[check.outcome]}"
        said = _WORDS[check.outcome].lower()
        return f"{sides}, {said} (it must where {CONDITIONS[check.statement]}, which is not so here)"
    where: dict[str, list[str]] = {word: [] for word in (*_WORDS.values(), "is not claimed")}
    for check in checks:
        where[_WORDS[check.outcome] if check.claimed else "is not claimed"].append(check.layer or "the network")
    return ", ".join(f"{word} in {', '.join(dict.fromkeys(layers))}" for word, layers in where.items() if layers)


_WORDS = {"holds": "holds", "unclear": "cannot be told within the errors", "fails": "FAILS"}


def _number(interval: Interval | None) -> str:
    """As many digits as are certain, four at most."""
    if interval is None:
        return ""
    middle = interval.middle
    for digits in (4, 3, 2):
        text = f"{middle:.{digits}g}"
        if f"{interval.low:.{digits}g}" == text == f"{interval.high:.{digits}g}":
            return text
    return f"{interval.low:.3g} to {interval.high:.3g}"


def _print_tallies(title: str, rows: Sequence[Tally]) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(no_wrap=True)
    table.add_column("statement", no_wrap=True)
    for heading in ("holds in", "worst slack", "bound/value"):
        table.add_column(heading, justify="right", no_wrap=True)
    for claimed in (True, False):
        if not claimed:
            table.add_section()
            table.add_row("", "[dim]where it is not claimed:[/dim]")
        for row in rows:
            if row.claimed == claimed:
                table.add_row(*_tally_cells(row))
    console.print(table)
    console.print(
        "λ: largest eigenvalue. Slack: right minus left side, over the matrix's norm. Bound/value: median (largest) "
        "ratio of the sides. " + " ".join(f"{name} is claimed where {where}." for name, where in CONDITIONS.items()),
        highlight=False,
    )


def _tally_cells(row: Tally) -> list[str]:
    tightness = "" if row.tightness is None else f"{row.tightness[1]:.3g} ({row.tightness[2]:.3g})"
    count = f"{row.holds} of {row.cases}"
    if row.claimed and row.holds < row.cases:
        count = f"[red]{count}[/red]"
    return [row.statement, STATEMENTS[row.statement], count, f"{row.worst_slack:.1e}", tightness]


def _print_toy_findings(cases: Sequence[ToyChecks], moved: Sequence[dict[str, Any]]) -> None:
    failing = [case for case in cases if any(c.statement == "S1" and c.outcome == "fails" for c in case.checks)]
    untrained = sum(not case.trained for case in failing)
    least = max((case.smallest for case in failing), default=0.0)
    console.print(
        f"S1 fails in {len(failing)} of {len(cases)} toys ({untrained} of them untrained), as expected: wherever it "
        f"fails, λmin(H) < 0, here below {least:.2g} |H|.",
        highlight=False,
    )
    table = Table(
        title="Where the curvature goes: 64-12-10-10 ReLU on digits, mean of "
        f"{len({shift['seed'] for shift in moved})} seeds",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    names = [layer["name"] for layer in moved[0]["layers"]]
    for heading in ("ζ", "logits", "accuracy", "λmax network", *(f"λmax {name}" for name in names)):
        table.add_column(heading, justify="right")
    for logits, zeta in dict.fromkeys((shift["zeta_logits"], shift["zeta"]) for shift in moved):
        own = [shift for shift in moved if (shift["zeta_logits"], shift["zeta"]) == (logits, zeta)]
        tops = [_mean(shift["layers"][i]["top"] for shift in own) for i in range(len(names))]
        accuracy, top = _mean(shift["accuracy"] for shift in own), _mean(shift["top"] for shift in own)
        cells = [f"{value:.3g}" for value in (top, *tops)]
        table.add_row(f"{zeta:g}", f"{logits:g}", f"{accuracy:.1%}", *cells)
    console.print(table)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _plain_tally(row: Tally) -> dict[str, Any]:
    return {**vars(row), "formula": STATEMENTS[row.statement]}


def _plain_case(case: ToyChecks) -> dict[str, Any]:
    checks = [{**vars(check), "left": check.left.middle, "right": check.right.middle} for check in case.checks]
    return {
        **vars(case),
        "checks": [{**check, "outcome": c.outcome} for check, c in zip(checks, case.checks, strict=True)],
    }


def _say_drawn(paths: Sequence[Path]) -> None:
    console.print(f"Figure: [bold]{paths[0]}[/bold], .pdf, .csv", soft_wrap=True)


def _fail_if_broken(checks: Sequence[Check]) -> None:
    """Raise `FlatlabError` naming the first claim that is refuted."""
    failed = broken(checks)
    if failed:
        first = failed[0]
        where = f" in layer {first.layer}" if first.layer else ""
        raise FlatlabError(
            f"Statement {first.statement} must hold{where} and does not ({first.left.middle:.6g} against "
            f"{first.right.middle:.6g}; {len(failed)} such in all): a product or a bound is computed wrongly."
        )
