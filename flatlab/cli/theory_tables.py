"""The tables that `flatlab verify` prints: a checkpoint's chain of bounds, the toys, and the verdicts of a study."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from analysis.theory.battery import ToyChecks
from analysis.theory.statements import CONDITIONS, EQUALITIES, STATEMENTS, Check, Interval, Tally
from analysis.theory.study import CONTRASTS, ClaimVerdict
from analysis.theory.verdicts import Comparison, Correlation
from figures.decimals import effect_shown
from figures.labels import group_labels
from figures.shown import marked
from figures.table_notes import mark_notes
from flatlab.measuring.verify import ToyBattery, Verification
from flatlab.terminal.console import console


def print_chain(path: Path, available: int, found: Verification) -> None:
    """Every layer's bounds, then the statements."""
    count = f"{found.settings['samples']} of {available:,} training samples"
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
    console.print(LEGEND, highlight=False, soft_wrap=True)
    console.print(f"{found.seconds:.0f} s\n", highlight=False)


LEGEND = (
    "λmax: largest eigenvalue of the layer's block of the Hessian, and A1, A2, A3 the bounds on it by the statements "
    "of that name; mean|ã|²: mean squared norm of what enters the layer, with a one for the bias. Two numbers with "
    "'to' between them enclose what could not be told more exactly. Proofs: docs/theory.md."
)


def _sentence(checks: Sequence[Check]) -> str:
    """What one statement's checks on one network came to."""
    if len(checks) == 1 and not checks[0].layer:
        (check,) = checks
        relation = "within" if check.statement in EQUALITIES else "<=" if check.outcome != "fails" else "is above"
        left, right = sides(check.left, check.right)
        read = f"{left} {relation} {right if check.right.high else 'rounding'}"
        if check.claimed:
            return f"{read}, {_WORDS[check.outcome]}"
        said = _WORDS[check.outcome].lower()
        return f"{read}, {said} (it must where {CONDITIONS[check.statement]}, which is not so here)"
    where: dict[str, list[str]] = {word: [] for word in (*_WORDS.values(), "is not claimed")}
    for check in checks:
        where[_WORDS[check.outcome] if check.claimed else "is not claimed"].append(check.layer or "the network")
    return ", ".join(f"{word} in {', '.join(dict.fromkeys(layers))}" for word, layers in where.items() if layers)


_WORDS = {"holds": "holds", "unclear": "cannot be told within the errors", "fails": "FAILS"}


def _number(interval: Interval | None) -> str:
    """As many digits as are certain, four at most."""
    if interval is None:
        return ""
    certain = (shown for digits in (4, 3, 2) if (shown := _rounded(interval, digits)))
    return next(certain, None) or _between(interval, 3)


def sides(left: Interval, right: Interval) -> tuple[str, str]:
    """Both sides of a relation in as many digits, for what is larger must not round to less."""
    for digits in (4, 3):
        if (shown_left := _rounded(left, digits)) and (shown_right := _rounded(right, digits)):
            return shown_left, shown_right
    return _rounded(left, 4) or _between(left, 4), _rounded(right, 4) or _between(right, 4)


def _rounded(interval: Interval, digits: int) -> str | None:
    """The number in so many digits, where both ends agree on them."""
    low, high = (f"{end:.{digits}g}" for end in (interval.low, interval.high))
    return low if low == high else None


def _between(interval: Interval, digits: int) -> str:
    low = f"{interval.low:.{digits}g}"
    return f"{low} to {interval.high:.{digits}g}" if interval.high < math.inf else f">= {low}"


def print_toys(found: ToyBattery) -> None:
    """The statements counted, and what the toys show."""
    _print_tallies(f"{len(found.cases)} toy networks, dense Hessians in float64", found.tallies)
    _print_toy_findings(found.cases, [asdict(shift) for shift in found.shift])
    console.print(f"{found.seconds:.0f} s")


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


def print_study(verdicts: Sequence[ClaimVerdict], correlated: Iterable[Correlation]) -> None:
    """Every claim with its verdict, and how norms go with eigenvalues."""
    for group, label in group_labels(verdict.group for verdict in verdicts).items():
        for contrast in CONTRASTS:
            own = [verdict for verdict in verdicts if (verdict.group, verdict.contrast) == (group, contrast)]
            if own:
                _print_verdicts(_title(contrast, label, json.loads(group)["rounds"]), own)
    console.print(
        "Each cell: x / y, for accuracy x - y in points, of runs with (x) and without (y) what the title names, paired "
        "by seed, with its 95 % interval. + supports the claim, - contradicts it, ? leaves it undecided: paired t "
        "test, p-values corrected for all comparisons (Holm). A claim is supported where every coefficient supports "
        "it, and contradicted where one contradicts it.\n",
        *mark_notes(vars(comparison) for verdict in verdicts for comparison in verdict.comparisons),
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


def _title(contrast: str, label: str, rounds: int) -> str:
    what = contrast[0].upper() + contrast[1:]
    return f"{what}: {label}" if f", rounds {rounds}" in label else f"{what}: {label}, {rounds} rounds"


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
    effect, low, high = effect_shown(comparison.effect, comparison.low, comparison.high, ratio=comparison.claim.ratio)
    shown = marked(f"{effect} {_MARKS[comparison.answer]}", comparison.doubt)
    return shown if math.isnan(comparison.low) else f"{shown}\n[dim]{low} to {high}[/dim]"  # one pair has no interval
