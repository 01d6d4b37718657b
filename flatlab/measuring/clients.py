"""What `flatlab eigs --clients` does: the curvature of each client's own loss at the global model, and statement F.

lambda_max(H) <= sum_k p_k lambda_max(H_k),    H = sum_k p_k H_k:    flat clients make a flat whole
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.objective import loss_at
from analysis.subsets import client_spectra
from flatlab.cli.console import console
from flatlab.measuring.eigs import Search, plain_eigenvalue
from flatlab.measuring.eigs_table import eigenvalue_heading, print_certificate, shown, warn_unless_converged
from flatlab.measuring.pictures import save_picture
from flatlab.measuring.running import Tell, measure
from flatlab.measuring.subjects import Measurement, Subject
from flatlab.measuring.tables import Cell, loss_name, mark, new_table, print_subjects, print_table, ratio


def clients_run(
    paths: Sequence[Path], measurement: Measurement, search: Search, figure: Path | None, json: Path | None
) -> None:
    """Measure every client's loss and that of all together, print a table, write and draw the numbers."""

    def work(subject: Subject, tell: Tell) -> dict[str, Any]:
        return clients_numbers(subject, search, tell)

    results = measure("clients", paths, measurement, work, json)
    _print(results)
    if figure is not None:
        from figures.client_curvature import draw_client_curvature

        save_picture(draw_client_curvature, results, figure)


def clients_numbers(subject: Subject, search: Search, tell: Tell) -> dict[str, Any]:
    """Top eigenvalues of every client's loss, of all together, and both sides of F."""

    def show(name: str, products: int, residual: float) -> None:
        tell(f"{f'client {name}' if name else 'all clients'}: {products} products, residual {residual:.1e}")

    spectra = client_spectra(subject.clients, k=search.k, tol=search.tol, max_iter=search.max_iter, progress=show)
    point = subject.problem.point()
    return {
        "loss": loss_at(subject.problem, point),
        "global": {"eigenvalues": [plain_eigenvalue(value) for value in spectra.whole]},
        "clients": [
            {
                "client": int(name),
                "samples": problem.samples,
                "weight": spectra.weights[name],
                "loss": loss_at(problem, point),
                "eigenvalues": [plain_eigenvalue(value) for value in spectra.clients[name]],
            }
            for name, problem in subject.clients.items()
        ],
        "statement_F": {
            "left": spectra.whole[0].value,
            "left_error": spectra.whole[0].residual,
            "right": spectra.mean,
            "right_error": spectra.mean_error,
            "slack": spectra.slack,
            "holds": spectra.holds,
        },
        "hvps": spectra.products,
    }


def _print(results: Sequence[dict[str, Any]]) -> None:
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
    table.add_row(*_row("together", whole), end_section=True)
    for client in sorted({client for clients in by_client for client in clients}):
        table.add_row(*_row(str(client), [clients.get(client) for clients in by_client]))
    print_table(f"Hessians of {loss_name(results[0])}, by client", table)
    print_subjects(results)
    for number, result in enumerate(results, start=1):
        f = result["statement_F"]
        console.print(
            f"{f'[{number}] ' if several else ''}F {'holds' if f['holds'] else 'FAILS'}: "
            f"λmax of all together {f['left']:.4g} ± {f['left_error']:.0e} <= "
            f"Σ p_k λmax of client k {f['right']:.4g} ± {f['right_error']:.0e}; slack {f['slack']:.4g}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    entries = [entry for result in results for entry in [result["global"], *result["clients"]]]
    values = [value for entry in entries for value in entry["eigenvalues"]]
    print_certificate(values)
    warn_unless_converged(values)


def _row(name: str, columns: Sequence[dict[str, Any] | None]) -> list[str]:
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
