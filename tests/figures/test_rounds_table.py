"""Rounds to a target accuracy: counted only where every compared run was evaluated."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from figures.errors import MissingResultsError
from figures.results import Result, Results
from figures.rounds_table import rounds_table
from flatlab.federated.config import make_config
from flatlab.grid.plan import parse_grid

GRID = """
title = "Evaluated at different rounds"
target_accuracy = 0.3
[common]
rounds = 12
[axes]
algorithms = ["fedavg", "fedsam", "feddyn"]
man = [false]
partitions = ["iid"]
seeds = [0]
"""


def results_of(**evaluated: Sequence[int]) -> Results:
    """Runs with an accuracy of 0.1 per round, each evaluated at the rounds of its algorithm."""
    runs = [
        Result(
            folder=Path(f"{algorithm}-s0"),
            config=make_config({"algorithm": algorithm, "rounds": 12, "partition": "iid"}),
            partition="iid",
            row="iid",
            records=tuple({"round": t, "test_accuracy": 0.1 * t} for t in rounds),
            measured={},
            training=(),
            trained=True,
            failure="",
        )
        for algorithm, rounds in evaluated.items()
    ]
    return Results(Path(), parse_grid(GRID, "test"), tuple(runs))


@pytest.mark.parametrize(
    ("rounds", "said", "first"),
    [
        (range(1, 13), "Evaluated every round.", "3"),
        ((5, 10, 12), "Evaluated every 5 rounds and after the last.", "5"),
        ((4, 8, 12), "Evaluated every 4 rounds.", "4"),
        ((2, 7, 12), "Evaluated after rounds 2, 7, 12.", "7"),
    ],
)
def test_runs_evaluated_alike_are_counted_at_every_evaluation(rounds: Sequence[int], said: str, first: str) -> None:
    table = rounds_table(results_of(fedavg=rounds, fedsam=rounds))
    assert [row[2] for row in table.rows] == [first, first]
    assert table.notes[0].endswith(said)


def test_a_run_that_is_evaluated_more_often_is_not_first_for_that() -> None:
    """All reach the target in round 3; FedSAM alone is looked at in round 4."""
    table = rounds_table(results_of(fedavg=(6, 12), fedsam=range(2, 13, 2), feddyn=(3, 6, 9, 12)))
    assert [row[2] for row in table.rows] == ["6", "6", "6"]
    assert [row["without_median"] for row in table.numbers] == [6, 6, 6]
    assert "where all runs were evaluated, every 6 rounds: some were at other rounds too" in table.notes[0]


@pytest.mark.parametrize(
    ("rounds", "said"), [((5, 10, 12), "all runs together after the last round alone"), ((), "at no round")]
)
def test_runs_that_share_no_evaluation_before_their_last_are_not_compared(rounds: Sequence[int], said: str) -> None:
    with pytest.raises(MissingResultsError, match=said) as caught:
        rounds_table(results_of(fedavg=(4, 8, 12), fedsam=rounds))
    assert str(caught.value).startswith("fedavg-s0 was evaluated every 4 rounds, fedsam-s0 ")
    assert "eval_every" in str(caught.value)
