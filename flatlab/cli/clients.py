"""`flatlab clients`: the curvature of clients' own models, beside the global one's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from flatlab.cli.eigs_table import print_certificate, shown, warn_unless_converged
from flatlab.cli.options import Given, measuring
from flatlab.cli.pictures import save_picture
from flatlab.cli.side_by_side import doubt, loss_name, mark, new_table, print_subjects, print_table
from flatlab.errors import UsageError
from flatlab.terminal.console import console

PLACES = {
    "own_at_own": "own loss, own model",
    "whole_at_own": "global loss, own model",
    "own_at_global": "own loss, global model",
}
"""What is measured of a client, as the table's columns call it."""


@measuring
def clients(
    given: Given,
    top_k: Annotated[int, typer.Option(min=1, help="Eigenvectors that span a client's top eigenspace.")] = 1,
    tol: Annotated[float, typer.Option(help="Stop where |Hv - lambda v| is below this share of |lambda|.")] = 1e-3,
    max_iter: Annotated[int, typer.Option(min=1, help="Most products per eigenvalue.")] = 1000,
    trace_tol: Annotated[float, typer.Option(help="Standard error of a trace, as a share of it.")] = 0.05,
) -> None:
    """Compare local with global flatness, from a clients-ROUND.pt of flatlab train --keep-clients ROUND.

    For each client of that round: top eigenvalue and trace of its own loss at its own model, of the global loss there,
    and of its own loss at the global model, beside the global loss at the global model; how far its model is; and how
    much the clients' top eigenspaces differ.
    """
    from figures.local_global import draw_local_global
    from flatlab.cli.sweep import measure
    from flatlab.measuring.eigs import read_search
    from flatlab.measuring.local_global import local_settings, measure_local_global
    from flatlab.measuring.trace import read_probing

    if not given.checkpoints:
        raise UsageError("Name a clients-ROUND.pt, as flatlab train --keep-clients ROUND writes it.")
    measurement = replace(given.measurement(), kept=True)
    search = read_search(top_k, "none", "lanczos", "flatlab", tol, max_iter)
    probing = read_probing(trace_tol, None)

    def present(results: Sequence[dict[str, Any]]) -> None:
        for number, result in enumerate(results, start=1):
            _print(f"{mark(number, results)}".strip(), result)
        print_subjects(results)
        values = [value for result in results for one in _curvatures(result) for value in one["eigenvalues"]]
        marks = {doubt(one["trace"]): one["trace"] for result in results for one in _curvatures(result)}
        print_certificate(values)
        rounded = [marks[" ~"]] if " ~" in marks else []
        warn_unless_converged([*values, *rounded], results[0]["settings"]["dtype"])
        if " !" in marks:
            console.print("! not converged: a trace's standard error is above the tolerance; raise --trace-tol.")
        if given.figure is not None:
            save_picture(draw_local_global, results, given.figure)

    measure(
        "local",
        given.paths,
        measurement,
        local_settings(search, probing),
        lambda subject, tell: measure_local_global(subject, search, probing, tell),
        present,
        given.json,
        given.figure,
        products=search.products + probing.products,
    )


def _print(number: str, result: Mapping[str, Any]) -> None:
    table = new_table()
    for heading in ("client", "|theta - w|", *PLACES.values()):
        table.add_column(heading, justify="left" if heading == "client" else "right")
    for entry in result["clients"]:
        table.add_row(str(entry["client"]), f"{entry['distance']:.3g}", *(_cell(entry[place]) for place in PLACES))
    print_table(f"{number} λ₁ (trace) of {loss_name(result)}: local against global".strip(), table)
    console.print(f"Global loss at the global model: {_cell(result['global'])}", highlight=False)
    for what, means in result["means"].items():
        console.print(
            f"{what}: mean of own at own {means['own_at_own']:.4g}, discrepancy {means['discrepancy']:+.4g} "
            f"(transfer {means['transfer']:+.4g})",
            highlight=False,
            soft_wrap=True,
        )
    if result["dissimilarity"]:
        console.print(
            "Dissimilarity of clients' top eigenspaces (0 alike, 1 orthogonal): "
            + ", ".join(f"{PLACES[place]} {value:.3f}" for place, value in result["dissimilarity"].items()),
            highlight=False,
            soft_wrap=True,
        )


def _cell(curvature: Mapping[str, Any]) -> str:
    trace = curvature["trace"]
    estimate = f"{trace['value']:.4g} ± {trace['standard_error']:.1g}{doubt(trace)}"
    return f"{shown(curvature['eigenvalues'][:1])} ({estimate})"


def _curvatures(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [result["global"], *(entry[place] for entry in result["clients"] for place in PLACES)]
