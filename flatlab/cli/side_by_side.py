"""Results of several subjects side by side, as ratios to the first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.measure import Measurement
from rich.table import Table

from figures import unconverged
from figures.decimals import factor_shown
from flatlab.terminal.console import console

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One number as it is shown, and itself where it may be compared with the first subject's."""

    text: str
    value: float | None = None


OF_THE_DATA = ("train_samples", "label_column", "hub_config", "holdout", "image_size")
"""Fields of a run that, beside its data set's name, decide which samples its training set holds."""

Row = tuple[str, Sequence[Cell | None]]
"""What stands in front, and a cell per subject."""


def number_cell(value: float | None, error: float | None = None) -> Cell:
    """A number, and its error where it has one; None is one that is not finite, as in JSON."""
    if value is None:
        return Cell("not finite")
    return Cell(f"{value:.4g}{'' if error is None else f' ± {error:.2g}'}", value)


def estimate_cell(estimate: Mapping[str, Any] | None) -> Cell | None:
    """A mean and its standard error, marked where that is above the tolerance."""
    if estimate is None:
        return None
    cell = number_cell(estimate["value"])
    return replace(cell, text=f"{cell.text}{give_or_take(estimate['standard_error'], '.2g')}{doubt(estimate)}")


def doubt(number: Mapping[str, Any]) -> str:
    """What marks an eigenvalue or an estimate that did not converge."""
    sign = unconverged.doubt(number)
    return sign and f" {sign}"


def give_or_take(error: float | None, form: str) -> str:
    """The standard error behind a number; of a single probe, which has none, a question mark."""
    return " ± ?" if error is None else f" ± {error:{form}}"


def print_side_by_side(title: str, heading: str, column: str, rows: Sequence[Row], results: Sequence[Result]) -> None:
    """One column per subject, headed `column`; with several, also the ratio to the first. Lines on each follow."""
    table = new_table()
    table.add_column(heading)
    for number in range(1, len(results) + 1):
        table.add_column(f"{mark(number, results)}{column}", justify="right")
        if number > 1:
            table.add_column("\n/[1]", justify="right")
    for name, cells in rows:
        line = []
        for number, cell in enumerate(cells):
            line.append("" if cell is None else cell.text)
            if number > 0:
                line.append(ratio(cell, cells[0]))
        table.add_row(name, *line)
    print_table(title, table)
    print_subjects(results)


def new_table() -> Table:
    """A table in the style of all commands."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)  # two subjects fit 80 columns just so


def print_table(title: str, table: Table) -> None:
    """The title stands apart, so that it may be wider than the table."""
    console.print(title, style="italic", markup=False, highlight=False)
    console.print()
    # A file, or a pipe, has no width that a number would have to be shortened for.
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.print(table, width=console.width if console.is_terminal else max(console.width, needed), crop=False)
    console.print()


def mark(number: int, results: Sequence[Result]) -> str:
    """What heads the columns of a subject, where there are several."""
    return f"[{number}]\n" if len(results) > 1 else ""


def ratio(cell: Cell | None, first: Cell | None) -> str:
    """The cell's value over that of the first subject, where both can be compared."""
    if cell is None or first is None or cell.value is None or not first.value:
        return ""
    return factor_shown(cell.value / first.value)


def print_subjects(results: Sequence[Result]) -> None:
    """A line on each: its name, its loss and test accuracy where known, products and seconds; and what is unlike."""
    for number, result in enumerate(results, start=1):
        notes = [f"loss {result['loss']:.4g} on these samples"] if "loss" in result else []
        accuracy = result.get("run", {}).get("metrics", {}).get("test_accuracy")
        notes += [] if accuracy is None else [f"test accuracy {accuracy:.2%}"]
        cost = [f"{result['hvps']} products"] if "hvps" in result else []
        cost += [f"{result['seconds']:.1f} s"]
        which = f"[{number}] " if len(results) > 1 else ""
        line = f"{which}{subject_name(result)}: {'; '.join(filter(None, [', '.join(notes), ', '.join(cost)]))}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    _print_unlike(results)
    console.print("What each column is: docs/glossary.md", style="dim", highlight=False)


def _print_unlike(results: Sequence[Result]) -> None:
    """Say which subjects were not measured as the first, so that a ratio says more than the models' difference."""
    usual = _measured_on(results[0])
    for number, result in enumerate(results[1:], start=2):
        other = _measured_on(result)
        how = [f"{name} {other[name]}, not {usual[name]}" for name in usual if other[name] != usual[name]]
        if not how and result["data"].get("choice") != results[0]["data"].get("choice"):
            how = ["on other samples, as its seed or split has them"]
        if how:
            console.print(
                f"[{number}] was measured otherwise than [1] ({'; '.join(how)}): ratios compare that too.",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def _measured_on(result: Result) -> dict[str, Any]:
    data, config = result["data"], result.get("run", {}).get("config", {})
    known = {"data": data["dataset"], "samples": data["samples"], "loss": result["loss_function"]}
    return known | {name: config.get(name, "none") for name in OF_THE_DATA}


def subject_name(result: Result) -> str:
    """The checkpoint, or the user's model with its weights."""
    if "checkpoint" in result:
        return str(result["checkpoint"])
    return f"{result['model']} ({result['weights']})" if result["weights"] else str(result["model"])


def loss_name(result: Result) -> str:
    """The loss and its samples, as titles call them."""
    data = result["data"]
    kind = f"{data['split']}ing " if data["split"] == "train" else ""
    return f"the mean {result['loss_function'].replace('_', '-')}, {data['samples']} {kind}samples of {data['dataset']}"
