"""`flatlab density`: how the eigenvalues of the Hessian are distributed."""

from typing import Annotated

import typer

from flatlab.cli import options


def density(
    checkpoints: options.Checkpoints = None,
    samples: options.Samples = None,
    full: options.Full = False,
    depth: Annotated[int, typer.Option(min=2, help="Products per random vector.")] = 40,
    probes: Annotated[int, typer.Option(min=1, help="Random vectors; two or more give standard errors.")] = 5,
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
    """Estimate the density of all eigenvalues of the Hessian by stochastic Lanczos quadrature.

    Prints what it says in numbers: the extent of the spectrum, the shares of negative, vanishing and positive
    eigenvalues, and the trace; the curve itself is in the JSON and in the figure.
    """
    from flatlab.measuring.density import Quadrature, density_run
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
    )
    density_run(paths, measurement, Quadrature(depth, probes), figure, json)
