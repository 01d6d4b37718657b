"""What `flatlab verify` concluded, where it left its results beside the runs."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from figures.decimals import effect_shown
from figures.errors import MissingResultsError
from figures.labels import group_labels
from figures.results import Results, require_alike
from figures.shown import marked
from figures.table import Table
from figures.table_notes import mark_notes


def verdict_tables(results: Results) -> tuple[list[Table], dict[str, str]]:
    """The claims of `flatlab verify --study` and the statements of every final.verify.json, if any.

    Returned with the reason for a table that the results do not allow.
    """
    claims = _claims(results.study)
    without = {"claims": results.outdated_study} if results.outdated_study else {}
    try:
        return [*claims, *_statements(results)], without
    except MissingResultsError as reason:
        return claims, {**without, "statements": str(reason)}


def _claims(verdicts: Sequence[dict[str, Any]]) -> list[Table]:
    if not verdicts:
        return []
    labels = group_labels(verdict["group"] for verdict in verdicts)
    rows, numbers = [], []
    for verdict in verdicts:
        claim, runs = verdict["claim"], labels[verdict["group"]]
        for comparison in verdict["comparisons"]:
            rows.append(
                (
                    verdict["contrast"],
                    f"{claim['quantity']} {claim['direction']}",
                    runs,
                    comparison["setting"],
                    str(comparison["pairs"]),
                    _effect(comparison, claim["ratio"]),
                    comparison["answer"],
                    verdict["answer"],
                )
            )
            numbers.append(
                {"contrast": verdict["contrast"], **claim, **comparison, "runs": runs, "verdict": verdict["answer"]}
            )
    note = (
        "By flatlab verify --study: the effect as a ratio (of accuracy: a difference in points), paired by seed, with "
        "its 95 % interval; answers by the paired t test, corrected for all comparisons (Holm). A claim is supported "
        "where every setting supports it, contradicted where one contradicts it."
    )
    columns = ("compared", "claim", "runs", "setting", "pairs", "effect [95 %]", "answer", "verdict on the claim")
    notes = (note, *mark_notes({"doubt": number.get("doubt", "")} for number in numbers))
    return [Table("claims", "Does MAN do what is claimed?", notes, columns, tuple(rows), tuple(numbers))]


def _effect(comparison: dict[str, Any], ratio: bool) -> str:
    """The effect alone where one pair leaves its interval open."""
    numbers: list[Any] = [comparison.get(key) for key in ("effect", "low", "high")]
    if numbers[0] is None:
        return ""
    effect, low, high = effect_shown(*(math.nan if n is None else n for n in numbers), ratio=ratio)
    shown = effect if None in numbers else f"{effect} [{low}, {high}]"
    return marked(shown, comparison.get("doubt", ""))


def _statements(results: Results) -> list[Table]:
    checks = [check for run in results.runs for check in run.measured.get("verify", {}).get("checks", [])]
    if not checks:
        return []
    require_alike(results.runs, "verify")
    rows, numbers = [], []
    for statement, formula in (results.statements or {}).items():
        for claimed in (True, False):
            own = [c["outcome"] for c in checks if c["statement"] == statement and c["claimed"] == claimed]
            if own:
                counts = Counter(own)
                outcomes = {outcome: counts[outcome] for outcome in ("holds", "unclear", "fails")}
                where = "" if claimed else " (where it is not claimed)"
                rows.append((statement, formula + where, *map(str, outcomes.values())))
                numbers.append({"statement": statement, "claimed": claimed, **outcomes})
    checked = sum("verify" in run.measured for run in results.runs)
    note = f"By flatlab verify, on {checked} final checkpoints, in float64, a layer or a network each."
    columns = ("statement", "formula", "holds", "unclear", "fails")
    return [Table("statements", "The chain of inequalities", (note,), columns, tuple(rows), tuple(numbers))]
