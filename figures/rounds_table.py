"""The table of communication rounds to a target accuracy, counted at the rounds at which all runs were evaluated."""

import math
import statistics
from collections.abc import Collection, Sequence
from typing import Any

from figures.errors import MissingResultsError
from figures.labels import algorithm_label, partition_label
from figures.paper import published
from figures.results import Result, Results
from figures.table import Table
from figures.table_notes import paper_notes, tuned_notes


def rounds_table(results: Results) -> Table:
    """Communication rounds to the target accuracy that the grid states.

    Raises `MissingResultsError` where there is none, or the runs share no evaluation before their last.
    """
    target = results.grid.target_accuracy if results.grid else None
    if target is None:
        raise MissingResultsError("the grid states no target_accuracy")
    trained = [run for run in results.usual if run.trained]
    if not trained:
        raise MissingResultsError("no run is trained to its end")
    at = _shared_rounds(trained)
    rows, numbers, beside = [], [], False
    for place in results.rows:
        for algorithm in results.algorithms:
            pair = [[run for run in results.select(algorithm, place, man) if run.trained] for man in (False, True)]
            if not any(pair):
                continue
            theirs = [_printed(runs, algorithm, man) for runs, man in zip(pair, (False, True), strict=True)]
            shown = [_shown_rounds(runs, target, at) for runs in pair]
            rows.append((partition_label(place), algorithm_label(algorithm), *shown, *theirs))
            row: dict[str, Any] = {"partition": place, "algorithm": algorithm}
            for side, runs, printed in zip(("without", "with"), pair, theirs, strict=True):
                row |= {**_rounds(runs, target, side, at), f"paper_{side}": printed}
            numbers.append(row)
            beside = beside or any(theirs)
    columns = ["partition", "algorithm", "without MAN", "with MAN"] + ["paper, without", "paper, with"] * beside
    notes = [
        f"First round evaluated with a test accuracy of at least {100 * target:g}%; median over seeds; R+ where it is "
        f"not reached within R rounds. {_evaluated(trained, at)}",
        results.grid.target_note.strip() if results.grid else "",
        *tuned_notes(results),
    ]
    return Table(
        name="rounds",
        title=f"Communication rounds to {100 * target:g}% test accuracy",
        notes=tuple(note for note in (*notes, *(paper_notes(results) if beside else [])) if note),
        columns=tuple(columns),
        rows=tuple(row[: len(columns)] for row in rows),
        numbers=tuple(numbers),
    )


def rounds_to_target(run: Result, target: float, at: Collection[int]) -> float:
    """The first of the rounds `at` with a test accuracy of at least `target`; infinite if there is none."""
    return next((float(done) for done, accuracy in run.curve if done in at and accuracy >= target), math.inf)


def _evaluations(run: Result) -> list[int]:
    return [done for done, _ in run.curve]


def _shared_rounds(runs: Sequence[Result]) -> list[int]:
    """The rounds at which all `runs` were evaluated.

    How often a run is evaluated may depend on its algorithm (`eval_every = 0`), and who is looked at more often is seen
    to reach the target earlier. Raises `MissingResultsError`, with the names of two, where only the last is shared.
    """
    first = _evaluations(runs[0])
    other = next((run for run in runs if _evaluations(run) != first), None)
    shared = sorted(set(first).intersection(*(_evaluations(run) for run in runs)))
    if other is not None and len(shared) < 2:
        raise MissingResultsError(
            f"{runs[0].name} was evaluated {_when(first)}, {other.name} {_when(_evaluations(other))}, and all runs "
            f"together {'after the last round alone' if shared else 'at no round'}: train them with one eval_every"
        )
    return shared


def _evaluated(runs: Sequence[Result], at: Sequence[int]) -> str:
    if all(_evaluations(run) == at for run in runs):
        return f"Evaluated {_when(at)}."
    return f"Counted where all runs were evaluated, {_when(at)}: some were at other rounds too, which do not count."


def _when(rounds: Sequence[int]) -> str:
    """The rounds as an interval, or one by one where they have none."""
    if not rounds:
        return "never"
    every, last = rounds[0], rounds[-1]
    if list(rounds) == [*range(every, last, every), last]:
        interval = f"every {every} rounds" if every > 1 else "every round"
        return interval if last % every == 0 else f"{interval} and after the last"
    return f"after rounds {', '.join(map(str, rounds))}"


def _printed(runs: Sequence[Result], algorithm: str, man: bool) -> str:
    printed = published("rounds", runs[0].config.dataset, runs[0].partition, algorithm, man) if runs else None
    return printed or ""


def _rounds(runs: Sequence[Result], target: float, side: str, at: Collection[int]) -> dict[str, Any]:
    counts = [rounds_to_target(run, target, at) for run in runs]
    return {
        f"{side}_median": statistics.median(counts) if counts else "",
        f"{side}_reached": sum(math.isfinite(count) for count in counts),
        f"{side}_seeds": len(counts),
    }


def _shown_rounds(runs: Sequence[Result], target: float, at: Collection[int]) -> str:
    if not runs:
        return ""
    counts = [rounds_to_target(run, target, at) for run in runs]
    middle = statistics.median(counts)
    reached = sum(math.isfinite(count) for count in counts)
    text = f"{middle:g}" if math.isfinite(middle) else f"{runs[0].config.rounds}+"
    return text if reached in (0, len(counts)) else f"{text} ({reached} of {len(counts)})"
