"""The tables of `flatlab eigs --clients` and `--per-batch`: the losses of parts of the data."""

from collections.abc import Sequence
from typing import Any

from flatlab.cli.eigs_table import eigenvalue_heading, lambda_, print_certificate, shown, warn_unless_converged
from flatlab.cli.side_by_side import (
    Cell,
    Row,
    loss_name,
    mark,
    new_table,
    number_cell,
    print_side_by_side,
    print_subjects,
    print_table,
    ratio,
)
from flatlab.terminal.console import console

_OUTCOMES = {True: "holds", False: "FAILS", None: "cannot be told, for want of convergence"}
QUANTILES = {"lowest": 0.0, "quarter below": 0.25, "median": 0.5, "quarter above": 0.75, "highest": 1.0}


def print_clients(results: Sequence[dict[str, Any]]) -> None:
    """A row per client, all of them together first, and statement F."""
    several = len(results) > 1
    count = len(results[0]["global"]["eigenvalues"])
    table = new_table()
    table.add_column("client")
    for number in range(1, len(results) + 1):
        if not several:
            table.add_column("samples", justify="right")
        table.add_column(f"{mark(number, results)}loss", justify="right")
        table.add_column(f"{mark(number, results)}{eigenvalue_heading(count)}", justify="right")
        if number > 1:
            table.add_column("\n/[1]", justify="right")
    by_client = [{entry["client"]: entry for entry in result["clients"]} for result in results]
    whole = [{**result["global"], "loss": result["loss"], "samples": result["data"]["samples"]} for result in results]
    table.add_row(*_client_row("together", whole), end_section=True)
    for client in sorted({client for clients in by_client for client in clients}):
        table.add_row(*_client_row(str(client), [clients.get(client) for clients in by_client]))
    print_table(f"Hessians of {loss_name(results[0])}, by client", table)
    print_subjects(results)
    for number, result in enumerate(results, start=1):
        f = result["statement_F"]
        console.print(
            f"{f'[{number}] ' if several else ''}F {_OUTCOMES[f['holds']]}: "
            f"λmax of all together {f['left']:.4g} ± {f['left_error']:.0e} <= "
            f"Σ p_k λmax of client k {f['right']:.4g} ± {f['right_error']:.0e}; slack {f['slack']:.4g}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    entries = [entry for result in results for entry in [result["global"], *result["clients"]]]
    values = [value for entry in entries for value in entry["eigenvalues"]]
    print_certificate(values)
    warn_unless_converged(values, results[0]["settings"]["dtype"])


def _client_row(name: str, columns: Sequence[dict[str, Any] | None]) -> list[str]:
    cells = [name]
    for number, column in enumerate(columns):
        if column is None:
            cells += [""] * (2 + (len(columns) == 1) + (number > 0))
            continue
        cells += [f"{column['samples']:,}"] if len(columns) == 1 else []
        cells += [f"{column['loss']:.4g}", shown(column["eigenvalues"])]
        if number > 0:
            cells.append(ratio(_top(column), _top(columns[0])))
    return cells


def _top(column: dict[str, Any] | None) -> Cell | None:
    return None if column is None else Cell("", column["eigenvalues"][0]["value"])


def print_batches(results: Sequence[dict[str, Any]]) -> None:
    """The distribution of the eigenvalues over the mini-batches, beside those of the mean loss."""
    title = f"Hessians of mini-batches of {results[0]['batch_size']}: {loss_name(results[0])}"
    print_side_by_side(title, "", "eigenvalue", _batch_rows(results), results)
    values = [value for result in results for value in result["global"]["eigenvalues"]]
    values += [{**values[0], "converged": result["converged"], "missed": result["missed"]} for result in results]
    print_certificate(values)
    warn_unless_converged(values, results[0]["settings"]["dtype"])


def _batch_rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    import numpy as np

    rows: list[Row] = []
    for index in range(len(results[0]["global"]["eigenvalues"])):
        values = [np.array(result["values"])[:, index] for result in results]
        wholes = [result["global"]["eigenvalues"][index] for result in results]
        name = lambda_(index + 1)
        rows.append(
            (
                f"{name} of the mean loss",
                [Cell(f"{whole['value']:.4g} ± {whole['residual']:.0e}", whole["value"]) for whole in wholes],
            )
        )
        rows.append((f"{name} of a batch: mean", [number_cell(float(own.mean())) for own in values]))
        for quantile, share in QUANTILES.items():
            rows.append((f"  {quantile}", [number_cell(float(np.quantile(own, share))) for own in values]))
    rows.append(("batches", [Cell(str(len(result["values"]))) for result in results]))
    return rows
