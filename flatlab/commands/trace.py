"""`flatlab trace`: the trace of the Hessian, of the network and of every layer; and other measures of flatness."""

from typing import Annotated

import typer

from flatlab.commands.options import (
    Checkpoints,
    Data,
    DataRoot,
    Device,
    Dtype,
    Figure,
    Full,
    Json,
    Loss,
    Model,
    Samples,
    Weights,
)


def trace(
    checkpoints: Checkpoints = None,
    samples: Samples = None,
    full: Full = False,
    flatness: Annotated[
        bool,
        typer.Option("--flatness", help="Every measure: eigenvalues, sharpness, and what rescaling cannot change."),
    ] = False,
    tol: Annotated[float, typer.Option(help="Stop where the standard error is below this share of the trace.")] = 0.02,
    max_probes: Annotated[int, typer.Option(min=2, help="Most random vectors, one product each.")] = 400,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    data_root: DataRoot = None,
    figure: Figure = None,
    json: Json = None,
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    loss: Loss = None,
) -> None:
    """Estimate the trace of a Hessian, which is the sum of its eigenvalues, and that of every layer's block.

    Hutchinson's estimate from random signs, with its standard error; the same products give the Frobenius norm. With
    --flatness also λ₁, λ₁/λ₅, the sharpness of SAM and ASAM, and each layer's relative flatness.
    """
    from flatlab.commands.curvature.flatness import flatness_run
    from flatlab.commands.curvature.subjects import read_measurement
    from flatlab.commands.curvature.trace import read_probing, trace_run

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
