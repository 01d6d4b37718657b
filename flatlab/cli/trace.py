"""`flatlab trace`: the trace of the Hessian, of the network and of every layer; and other measures of flatness."""

from typing import Annotated

import typer

from flatlab.cli import options


def trace(
    checkpoints: options.Checkpoints = None,
    samples: options.Samples = None,
    full: options.Full = False,
    flatness: Annotated[
        bool,
        typer.Option("--flatness", help="Every measure: eigenvalues, sharpness, and what rescaling cannot change."),
    ] = False,
    tol: Annotated[float, typer.Option(help="Stop where the standard error is below this share of the trace.")] = 0.02,
    max_probes: Annotated[int, typer.Option(min=2, help="Most random vectors, one product each.")] = 400,
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
    """Estimate the trace of a Hessian, which is the sum of its eigenvalues, and that of every layer's block.

    Hutchinson's estimate from random signs, with its standard error; the same products give the Frobenius norm. With
    --flatness also λ₁, λ₁/λ₅, the sharpness of SAM and ASAM, and each layer's relative flatness.
    """
    from flatlab.measuring.flatness import flatness_run
    from flatlab.measuring.subjects import read_measurement
    from flatlab.measuring.trace import read_probing, trace_run

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
    )
    run = flatness_run if flatness else trace_run
    run(paths, measurement, read_probing(tol, max_probes), figure, json)
