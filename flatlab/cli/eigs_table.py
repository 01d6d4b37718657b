"""The table that `flatlab eigs` prints: one row for the network and one per layer, several subjects side by side."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from figures.captions import matrix_name
from figures.labels import block_label
from flatlab.cli.side_by_side import Cell, doubt, loss_name, mark, new_table, print_subjects, print_table, ratio
from flatlab.terminal.console import console


def print_eigs(results: Sequence[dict[str, Any]]) -> None:
    """Per subject the eigenvalues, and the norms of the activations that enter and leave each layer."""
    several, which = len(results) > 1, results[0]["settings"]["which"]
    table = new_table()
    table.add_column("layer")
    if not several:  # two checkpoints fit 80 columns without it
        table.add_column("parameters", justify="right")
    for number, result in enumerate(results, start=1):
        count = len(result["global"]["eigenvalues"])
        table.add_column(f"{mark(number, results)}{eigenvalue_heading(count, which)}", justify="right")
        if number > 1:
            table.add_column("\n/[1]", justify="right")
        table.add_column(f"{mark(number, results)}|a|² in → out", justify="right")
    by_name = [{layer["name"]: layer for layer in result["layers"]} for result in results]
    for row in _rows("network", [_whole(result) for result in results]):
        table.add_row(*row)
    table.add_section()
    for name in dict.fromkeys(name for layers in by_name for name in layers):
        for row in _rows(block_label(name), [layers.get(name) for layers in by_name]):
            table.add_row(*row)
    print_table(f"{matrix_name(results[0])} of {loss_name(results[0])}", table)
    print_subjects(results)
    for number, result in enumerate(results, start=1):
        if result["sampling"]:
            _print_sampling(f"[{number}] " if several else "", result)
    values = [value for result in results for value in _all_values(result)]
    print_certificate(values, results[0]["method"], results[0]["backend"], which)
    of_subsets = [value for result in results if result["sampling"] for value in result["sampling"]["subsets"]]
    warn_unless_converged([*values, *of_subsets], results[0]["settings"]["dtype"], which)


def eigenvalue_heading(count: int, which: str = "largest") -> str:
    """The heading of a column of `count` eigenvalues of an end of the spectrum, or of both."""
    if which != "largest":
        return f"{'smallest' if which == 'smallest' else 'max, min'} λ ± residual"
    return f"{lambda_(1)}{'' if count == 1 else f'…{lambda_(count)}'} ± residual"


def lambda_(index: int) -> str:
    """λ with an index below."""
    return "λ" + str(index).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def shown(values: Sequence[Mapping[str, Any]]) -> str:
    """Eigenvalues with their residuals, one a line, marked where they did not converge."""
    return "\n".join(
        f"{v['value']:{'.0e' if _is_within_error(v) else '.4g'}} ± {v['residual']:.0e}{doubt(v)}" for v in values
    )


def _is_within_error(value: Mapping[str, Any]) -> bool:
    """Whether the eigenvalue cannot be told from zero."""
    return bool(abs(value["value"]) < value["residual"])


def warn_unless_converged(
    values: Sequence[Mapping[str, Any]], dtype: str, which: str = "largest", *, adjustable: bool = True
) -> None:
    """Say what the marks mean, and what to do, where the command has options for it."""
    marks = {doubt(value) for value in values}
    others = {"largest": "larger eigenvalues", "smallest": "smaller eigenvalues"}.get(which, "eigenvalues beyond")
    if " !" in marks:
        console.print(
            f"! not converged: the residual is above the tolerance, or {others} are not excluded"
            f"{'; raise --max-iter, or --tol' if adjustable else ''}."
        )
    if " ~" in marks:
        advice = ["raise --tol"] if adjustable else []
        advice += ["measure in float64"] if dtype == "float32" else []
        remedy = f"; {', or '.join(advice)}" if advice else ""
        console.print(f"~ exact to rounding only, which is above the tolerance here{remedy}.")


_BEYOND = {
    "largest": "exceed the last shown",
    "smallest": "lie below the last shown",
    "both": "exceed the last max shown, or lie below the last min,",
}


def print_certificate(
    values: Sequence[dict[str, Any]], method: str = "lanczos", backend: str = "flatlab", which: str = "largest"
) -> None:
    """Say what is certified of the eigenvalues that no mark stands at."""
    certified = [value for value in values if value["converged"]]
    if certified:
        missed = max(value["missed"] for value in certified)
        beside = "" if which == "largest" else "(at the lower end) than the tolerance times the largest magnitude, or "
        console.print(
            f"An eigenvalue lies within each residual. No others of the same matrix {_BEYOND[which]}"
            f"{' in magnitude' if method == 'power' else ''} by more than twice the tolerance times its size, or "
            f"{beside}than rounding{_with_probability(missed)}.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if not all(value["confirmed"] for value in values):
        why = "they are PyHessian's" if backend == "pyhessian" else "the model does not run in float64"
        console.print(f"Residuals are those of products in float32 and not checked in float64: {why}.")


def _with_probability(missed: float) -> str:
    """The certificate's last words: percent rounded down, below 100 of what may fail; none of what is exact."""
    if missed == 0:
        return ""
    return f", with probability >= {min(math.floor(10_000 * (1 - missed)), 9_999) / 100:g} % for each matrix"


def _print_sampling(number: str, result: dict[str, Any]) -> None:
    """What the choice of samples does to the first row, so that differences between subjects can be judged."""
    sampling = result["sampling"]
    values = ", ".join(f"{value['value']:.4g}{doubt(value)}" for value in sampling["subsets"])
    console.print(
        f"{number}λ₁ of {len(sampling['subsets'])} disjoint subsets of {sampling['samples_per_subset']} samples: "
        f"{values}. The choice of {result['data']['samples']} samples moves λ₁ by about "
        f"± {sampling['standard_error']:.2g} (standard error). That leaves out a bias: fewer samples give a larger "
        "λ₁ on average, here too; --full takes all.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _whole(result: dict[str, Any]) -> dict[str, Any]:
    return {**result["global"], "input_norm2": None, "output_norm2": None, "sampling": result["sampling"]}


def _rows(name: str, columns: Sequence[dict[str, Any] | None]) -> list[list[str]]:
    """A row for the block, or of both ends of its spectrum one for the largest and one for the smallest."""
    ends = [_smallest(column) for column in columns]
    if all(end is None for end in ends):
        return [_row(name, columns)]
    return [_row(name, [_largest(column) for column in columns]), _row("  min", ends)]


def _largest(column: dict[str, Any] | None) -> dict[str, Any] | None:
    return column and {**column, "eigenvalues": [v for v in column["eigenvalues"] if v["end"] == "largest"]}


def _smallest(column: dict[str, Any] | None) -> dict[str, Any] | None:
    """The lower end of the block's spectrum beside the upper; None where both were not measured."""
    values = [] if column is None else [v for v in column["eigenvalues"] if v.get("end") == "smallest"]
    if column is None or not values or len(values) == len(column["eigenvalues"]):
        return None
    return {"eigenvalues": values, "parameters": None, "input_norm2": None, "output_norm2": None}


def _row(name: str, columns: Sequence[dict[str, Any] | None]) -> list[str]:
    first = next(column for column in columns if column is not None)
    cells = [name]
    if len(columns) == 1:
        cells.append(f"{first['parameters']:,}" if first["parameters"] else "")
    for number, column in enumerate(columns):
        if column is None:
            cells += [""] * (2 if number == 0 else 3)
            continue
        sampling = column.get("sampling")
        beside = f"\n± {sampling['standard_error']:.2g} sample" if sampling else ""
        cells.append(shown(column["eigenvalues"]) + beside)
        if number > 0:
            cells.append(ratio(_top(column), _top(columns[0])))
        norms = [column["input_norm2"], column["output_norm2"]]
        cells.append("" if norms == [None, None] else " → ".join("?" if n is None else _short(n) for n in norms))
    return cells


def _short(number: float) -> str:
    """Three digits in five letters at most, thousands as k, millions as M, so that two subjects fit 80 columns."""
    for unit, size in {"M": 1e6, "k": 1e3}.items():
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _top(column: dict[str, Any] | None) -> Cell | None:
    """What ratios are made of: the first eigenvalue, unless it cannot be told from zero."""
    if column is None or _is_within_error(column["eigenvalues"][0]):
        return None
    return Cell("", column["eigenvalues"][0]["value"])


def _all_values(result: dict[str, Any]) -> list[dict[str, Any]]:
    layers = (value for layer in result["layers"] for value in layer["eigenvalues"])
    return [*result["global"]["eigenvalues"], *layers]
