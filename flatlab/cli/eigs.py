"""`flatlab eigs`: the ends of the spectrum of one or more networks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatlab.cli.eigs_table import print_eigs
from flatlab.cli.options import MATRIX, Given, choice, measuring
from flatlab.cli.parts_table import print_batches, print_clients
from flatlab.cli.pictures import save_picture
from flatlab.errors import UsageError

if TYPE_CHECKING:
    from flatlab.measuring.result import Result
    from flatlab.measuring.subjects import Subject
    from flatlab.tell import Tell

_PARTS = "Parts of the data"


@measuring
def eigs(
    given: Given,
    top_k: Annotated[int, typer.Option(min=1, help="Eigenvalues per network and layer; per end, of both.")] = 1,
    which: Annotated[str, choice("largest", "smallest", "both", help="The end of the spectrum.")] = "largest",
    matrix: Annotated[str, MATRIX] = "hessian",
    layers: Annotated[str, typer.Option(help="Layers to measure: all, none, or names separated by commas.")] = "all",
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="block|PATTERN,...",
            help="Take layers together: block makes one of h.3.attn and h.3.mlp, h.3; so does the pattern 'h.*'.",
        ),
    ] = None,
    method: Annotated[str, choice("lanczos", "power", help="Power is iteration with deflation.")] = "lanczos",
    backend: Annotated[
        str,
        choice("flatlab", "pyhessian", help="Whose products; PyHessian's are an independent check."),
    ] = "flatlab",
    tol: Annotated[float, typer.Option(help="Stop where |Hv - lambda v| is below this share of |lambda|.")] = 1e-3,
    max_iter: Annotated[int, typer.Option(min=1, help="Most products per eigenvalue.")] = 1000,
    vectors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Write the network's eigenvectors there, cut into its parameters, with values and residuals.",
        ),
    ] = None,
    clients: Annotated[
        str | None,
        typer.Option(
            metavar="all|K,K,...",
            help="Measure each client's own loss at the checkpoint instead of the layers.",
            rich_help_panel=_PARTS,
        ),
    ] = None,
    per_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Measure each mini-batch of this size instead of the layers.", rich_help_panel=_PARTS),
    ] = None,
) -> None:
    """Measure how flat a minimum is: extreme Hessian eigenvalues of the network and of every layer.

    Each eigenvalue comes with its residual |Hv - lambda v|: an eigenvalue of H lies within that distance. Beside each
    layer stands the mean squared norm of the activation that enters and that leaves it. Several checkpoints are shown
    side by side, as ratios to the first, runs without MAN standing before those with it. The loss is the mean
    cross-entropy (without MAN) on training samples; where these are some of many, λ₁ is measured on disjoint subsets
    too, to show how much the choice matters.

    --clients also checks that λmax of the clients' loss together is at most the weighted mean of their own.
    """
    from figures.batch_spectrum import draw_batch_spectrum
    from figures.client_curvature import draw_client_curvature
    from figures.layer_eigenvalues import draw_layers
    from flatlab.cli.sweep import measure
    from flatlab.measuring.batch_spectrum import measure_batches
    from flatlab.measuring.client_curvature import measure_clients
    from flatlab.measuring.eigs import EigsResult, measure_eigs, read_search

    measurement = given.measurement(clients)
    search = read_search(top_k, layers, method, backend, tol, max_iter, which, matrix, group_by)
    if vectors is not None and (clients is not None or per_batch is not None or len(given.paths) > 1):
        raise UsageError("--vectors holds those of one network and its whole loss: name one checkpoint, and no parts.")
    if clients is not None and per_batch is not None:
        raise UsageError("--clients and --per-batch are two measurements: ask for one at a time.")
    if clients is not None:
        search.require_plain("--clients")
        kind, show, draw = "clients", print_clients, draw_client_curvature
        settings = search.plain_part
    elif per_batch is not None:
        search.require_plain("--per-batch")
        kind, show, draw = "batches", print_batches, draw_batch_spectrum
        settings = search.plain_part | {"batch_size": per_batch}
    else:
        kind, show, draw = search.kind, print_eigs, draw_layers
        settings = search.settings

    def work(subject: "Subject", tell: "Tell") -> "Result":
        if clients is not None:
            return measure_clients(subject, search, tell)
        return (
            measure_eigs(subject, search, tell)
            if per_batch is None
            else measure_batches(subject, search, per_batch, tell)
        )

    def keep(result: "Result") -> None:
        if vectors is not None:
            assert isinstance(result, EigsResult)
            result.save_vectors(vectors)

    def present(results: Sequence[dict[str, Any]]) -> None:
        show(results)
        if given.figure is not None:
            save_picture(draw, results, given.figure)

    measure(
        kind,
        given.paths,
        measurement,
        settings,
        work,
        present,
        given.json,
        given.figure,
        products=search.products,
        kept=vectors,
        keep=keep,
    )
