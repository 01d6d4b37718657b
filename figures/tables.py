"""The paper's tables from saved results: ours over seeds, without and with MAN, beside the published numbers."""

from collections.abc import Callable
from dataclasses import dataclass

from figures.decimals import three_digits
from figures.errors import MissingResultsError
from figures.finished_methods import FEWEST
from figures.labels import REPORTED, algorithm_label, partition_label
from figures.man_table import man_table
from figures.method_tables import agreement_table, ranks_table
from figures.paper import Quantity, published
from figures.results import Result, Results, require_alike
from figures.rounds_table import rounds_table
from figures.shown import difference_shown, printed_difference, sample_numbers, sample_shown
from figures.statistics import paired_difference, sample
from figures.table import Table
from figures.table_notes import doubt_notes, paper_notes, precision_notes, tuned_notes
from figures.unconverged import worst


@dataclass(frozen=True)
class _Quantity:
    """What a comparison table shows of a run, and how."""

    name: Quantity
    title: str
    value: Callable[[Result], float | None]
    fewest: Callable[[float], int]  # decimals of a number of this size, at least
    change: str  # heading of with minus without
    notes: tuple[str, ...]


def make_tables(results: Results) -> tuple[list[Table], dict[str, str]]:
    """Return the tables that the results allow, and the reason for each that they do not.

    Those that compare methods with one another are only tried where there are `FEWEST` of them.

    >>> from pathlib import Path
    >>> from flatlab.federated.config import make_config
    >>> config, rounds = make_config({"rounds": 1}), ({"round": 1, "test_accuracy": 0.9},)
    >>> run = Result(Path("run"), config, "iid", "iid", rounds, {}, (), trained=True, failure="")
    >>> tables, skipped = make_tables(Results(Path(), None, (run,)))
    >>> [table.name for table in tables]
    ['accuracy']
    """
    tables, skipped = [], {}
    among = METHOD_TABLES if len(results.algorithms) >= FEWEST else {}
    for name, make in (TABLES | among).items():
        try:
            tables.append(make(results))
        except MissingResultsError as reason:
            skipped[name] = str(reason)
    return tables, skipped


def accuracy_table(results: Results) -> Table:
    """Final test accuracy in percent."""
    return _comparison(
        results,
        _Quantity(
            name="accuracy",
            title="Test accuracy after the last round, %",
            value=lambda run: None if run.accuracy is None else 100 * run.accuracy,
            fewest=lambda number: 2,
            change="gain",
            notes=(_reported_model(results),),
        ),
    )


def eigenvalue_table(results: Results) -> Table:
    """Top eigenvalue of the Hessian."""
    return _comparison(
        results,
        _Quantity(
            name="top_eigenvalue",
            title="Top eigenvalue of the Hessian after the last round",
            value=lambda run: run.top_eigenvalue,
            fewest=three_digits,
            change="change",
            notes=(_measured_on(results, "eigs"),),
        ),
    )


def trace_table(results: Results) -> Table:
    """Trace of the Hessian."""
    return _comparison(
        results,
        _Quantity(
            name="trace",
            title="Trace of the Hessian after the last round",
            value=lambda run: run.trace,
            fewest=three_digits,
            change="change",
            notes=(_measured_on(results, "trace"),),
        ),
    )


TABLES: dict[str, Callable[[Results], Table]] = {
    "accuracy": accuracy_table,
    "top_eigenvalue": eigenvalue_table,
    "trace": trace_table,
    "rounds": rounds_table,
}

METHOD_TABLES: dict[str, Callable[[Results], Table]] = {
    "ranks": ranks_table,
    "man": man_table,
    "agreement": agreement_table,
}


def _comparison(results: Results, quantity: _Quantity) -> Table:
    """Rows of partition and algorithm; ours without, with and the paired difference; the paper's likewise."""
    rows, numbers, beside = [], [], False
    seeds = len({run.config.seed for run in results.usual})
    for place, algorithm in _cells(results):
        runs = [results.select(algorithm, place, man) for man in (False, True)]
        ours = [_by_seed(own, quantity.value) for own in runs]
        means = [sample(list(values.values())) for values in ours]
        if means == [None, None]:
            continue
        gain = paired_difference(*ours)
        first = runs[means[0] is None][0]
        doubts = [[run.doubt(quantity.name) for run in own] for own in runs]
        paper = [
            published(quantity.name, first.config.dataset, first.partition, algorithm, man) or ""
            for man in (False, True)
        ]
        rows.append(
            (
                partition_label(place),
                algorithm_label(algorithm),
                *(sample_shown(m, quantity.fewest, seeds, worst(d)) for m, d in zip(means, doubts, strict=True)),
                difference_shown(gain, quantity.fewest),
                *paper,
                printed_difference(*paper),
            )
        )
        numbers.append(
            {
                "partition": place,
                "algorithm": algorithm,
                **sample_numbers("without", means[0]),
                **sample_numbers("with", means[1]),
                "difference": gain.mean if gain else "",
                "difference_low": gain.low if gain and gain.low is not None else "",
                "difference_high": gain.high if gain and gain.high is not None else "",
                "pairs": gain.pairs if gain else 0,
                "without_unconverged": sum(map(bool, doubts[0])),
                "with_unconverged": sum(map(bool, doubts[1])),
                "paper_without": paper[0],
                "paper_with": paper[1],
            }
        )
        beside = beside or any(paper)
    if not rows:
        raise MissingResultsError(f"no run has a {quantity.name.replace('_', ' ')}")
    columns = ["partition", "algorithm", "without MAN", "with MAN", f"{quantity.change} [95 %]"]
    columns += ["paper, without", "paper, with", f"paper, {quantity.change}"] * beside
    return Table(
        name=quantity.name,
        title=quantity.title,
        notes=(
            _seeds_note(results),
            *quantity.notes,
            *doubt_notes(results.usual, quantity.name),
            *precision_notes(results),
            *tuned_notes(results),
            *(paper_notes(results) if beside else []),
        ),
        columns=tuple(columns),
        rows=tuple(row[: len(columns)] for row in rows),
        numbers=tuple(numbers),
    )


def _cells(results: Results) -> list[tuple[str, str]]:
    return [(place, algorithm) for place in results.rows for algorithm in results.algorithms]


def _by_seed(runs: list[Result], value: Callable[[Result], float | None]) -> dict[int, float]:
    found = {run.config.seed: value(run) for run in runs}
    return {seed: number for seed, number in found.items() if number is not None}


def _seeds_note(results: Results) -> str:
    seeds = ", ".join(map(str, sorted({run.config.seed for run in results.usual if run.trained})))
    zetas = " or ".join(f"{zeta:g}" for zeta in results.zetas)
    with_man = f"MAN with zeta {zetas}; " if zetas else ""
    return (
        f"Mean ± standard deviation over seeds ({seeds}; in brackets how many, where fewer, and how many are left out, "
        f"being not finite); {with_man}difference with minus without, paired by seed, with its "
        "95 % interval (Student's t)."
    )


def _reported_model(results: Results) -> str:
    rounds = sorted({run.config.rounds for run in results.usual if run.trained})
    models = sorted({REPORTED[run.config.report] for run in results.usual if run.trained})
    return f"After {' or '.join(map(str, rounds))} rounds, of {' or '.join(models)}."


def _measured_on(results: Results, kind: str) -> str:
    require_alike(results.usual, kind)
    samples = sorted({run.measured[kind]["data"]["samples"] for run in results.usual if kind in run.measured})
    if not samples:
        raise MissingResultsError(f"no run has its final.{kind}.json")
    count = " or ".join(map(str, samples))
    return f"Of the reported model; the loss is the mean cross-entropy on {count} training images, without MAN's term."
