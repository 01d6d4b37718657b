"""When a statement holds, fails, or cannot be told."""

import math

import pytest

from analysis.theory.statements import ROUNDING, STATEMENTS, Check, Interval, broken, exactly, tally, total


def check(left: Interval, right: Interval, statement: str = "A1", claimed: bool = True, scale: float = 1.0) -> Check:
    return Check(statement, "fc1", left, right, scale, claimed)


@pytest.mark.parametrize(
    ("left", "right", "outcome"),
    [
        (exactly(1.0), exactly(2.0), "holds"),
        (exactly(2.0), exactly(1.0), "fails"),
        (exactly(1.0), exactly(1.0), "holds"),
        (exactly(1.0 + 1e-12), exactly(1.0), "holds"),  # rounding
        (exactly(1.0 + 1e-6), exactly(1.0), "fails"),
        (Interval(0.9, 1.2), exactly(1.1), "unclear"),  # the error of the left side decides
        (Interval(0.9, 1.2), Interval(1.2, 1.3), "holds"),
        (exactly(1.0), Interval(0.9, 1.1), "unclear"),
        (Interval(1.2, 1.3), Interval(0.9, 1.1), "fails"),  # everywhere in both intervals
    ],
)
def test_the_outcome_takes_the_error_of_both_sides_into_account(left: Interval, right: Interval, outcome: str) -> None:
    assert check(left, right).outcome == outcome


def test_rounding_is_judged_against_the_norm_of_the_matrix() -> None:
    left, right = exactly(5e3 * ROUNDING), exactly(0.0)
    assert check(left, right, "K", scale=1e4).outcome == "holds"
    assert check(left, right, "K", scale=1e3).outcome == "fails"


def test_slack_and_tightness() -> None:
    assert check(exactly(2.0), exactly(3.0), scale=4.0).slack == 0.25
    assert check(exactly(2.0), exactly(3.0)).tightness == 1.5
    assert math.isnan(check(exactly(0.0), exactly(3.0)).tightness)


def test_nothing_is_no_division_by_zero() -> None:
    """A network whose outputs depend on no parameter: every side, and the scale, is zero."""
    nothing = check(exactly(0.0), exactly(0.0), scale=0.0)
    assert (nothing.outcome, nothing.slack) == ("holds", 0.0)


def test_intervals_add_up_and_turn_over() -> None:
    assert total([Interval(1, 2), Interval(3, 5)]) == Interval(4, 7)
    assert Interval(-3, -1).times(-2) == Interval(2, 6)


def test_the_tally_separates_what_is_not_claimed() -> None:
    checks = [
        check(exactly(1.0), exactly(1.5)),
        check(exactly(1.0), exactly(4.0)),
        check(exactly(1.0), Interval(0.5, 3.5)),
        check(exactly(2.0), exactly(1.0), "S1", claimed=False),
    ]
    first, second = tally(checks)
    assert (first.statement, first.claimed, first.cases, first.holds, first.unclear, first.fails) == (
        "A1", True, 3, 2, 1, 0
    )  # fmt: skip
    assert first.worst_slack == -0.5  # of intervals the lower ends, which were found
    assert first.tightness == (0.5, 1.5, 4.0)
    assert (second.statement, second.claimed, second.fails) == ("S1", False, 1)


def test_only_a_refuted_claim_is_broken() -> None:
    fails, elsewhere = check(exactly(2.0), exactly(1.0)), check(exactly(2.0), exactly(1.0), claimed=False)
    assert broken([fails, elsewhere, check(exactly(0.0), Interval(-1.0, 1.0))]) == [fails]


def test_every_statement_of_the_theory_is_there() -> None:
    assert list(STATEMENTS) == ["L", "D", "T", "T (G)", "B", "K", "A1", "A2", "A3", "P", "S1", "S1 (G)", "S2", "F"]
