"""`flatlab eigs`: the top of the Hessian spectrum of one or more networks."""

from typing import Annotated

import typer

from flatlab.cli import options
from flatlab.errors import UsageError

_PARTS = "Parts of the data"


def eigs(
    checkpoints: options.Checkpoints = None,
    top_k: Annotated[int, typer.Option(min=1, help="Eigenvalues per network and layer.")] = 1,
    samples: options.Samples = None,
    full: options.Full = False,
    layers: Annotated[str, typer.Option(help="Layers to measure: all, none, or names separated by commas.")] = "all",
    method: Annotated[str, typer.Option(help="lanczos, or power (iteration with deflation).")] = "lanczos",
    backend: Annotated[str, typer.Option(help="flatlab, or pyhessian as an independent check.")] = "flatlab",
    tol: Annotated[float, typer.Option(help="Stop where |Hv - lambda v| is below this share of |lambda|.")] = 1e-3,
    max_iter: Annotated[int, typer.Option(min=1, help="Most products per eigenvalue.")] = 1000,
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
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    data_root: options.DataRoot = None,
    figure: options.Figure = None,
    json: options.Json = None,
    model: options.Model = None,
    weights: options.Weights = None,
    data: options.Data = None,
    loss: options.Loss = None,
) -> None:
    """Measure how flat a minimum is: top Hessian eigenvalues of the network and of every layer.

    Each eigenvalue comes with its residual |Hv - lambda v|: an eigenvalue of H lies within that distance. Beside each
    layer stands the mean squared norm of the activation that enters and that leaves it. Several checkpoints are shown
    side by side, as ratios to the first. The loss is the mean cross-entropy (without MAN) on training samples; where
    these are some of many, λ₁ is measured on disjoint subsets too, to show how much the choice matters.

    --clients also checks that λmax of the clients' loss together is at most the weighted mean of their own.
    """
    from flatlab.measuring.batches import batches_run
    from flatlab.measuring.clients import clients_run
    from flatlab.measuring.eigs import eigs_run, read_search
    from flatlab.measuring.subjects import read_measurement

    paths = checkpoints or []
    measurement = read_measurement(
        paths,
        samples=samples,
        full=full,
        dtype=dtype,
        device=device,
        data_root=data_root,
        model=model,
        weights=weights,
        data=data,
        loss=loss,
        clients=clients,
    )
    search = read_search(top_k, layers, method, backend, tol, max_iter)
    if clients is not None and per_batch is not None:
        raise UsageError("--clients and --per-batch are two measurements: ask for one at a time.")
    if clients is not None:
        search.require_plain("--clients")
        clients_run(paths, measurement, search, figure, json)
    elif per_batch is not None:
        search.require_plain("--per-batch")
        batches_run(paths, measurement, search, per_batch, figure, json)
    else:
        eigs_run(paths, measurement, search, figure, json)
