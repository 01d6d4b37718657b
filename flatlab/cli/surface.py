"""`flatlab surface`: the loss on a line or a plane through the parameters."""

from typing import Annotated

import typer

from flatlab.cli import options


def surface(
    checkpoints: options.Checkpoints = None,
    samples: options.Samples = None,
    full: options.Full = False,
    along: Annotated[
        str, typer.Option(help="random (filter-normalised directions) or eigenvectors (of the largest eigenvalues).")
    ] = "random",
    line: Annotated[bool, typer.Option("--line", help="Along one direction instead of two.")] = False,
    extent: Annotated[float, typer.Option(help="How far to go either way, in multiples of the direction.")] = 1.0,
    points: Annotated[int, typer.Option(min=2, help="Points along each direction.")] = 21,
    seed: Annotated[int, typer.Option(help="Of the random directions.")] = 0,
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
    """Evaluate the loss around the model along one or two directions; several checkpoints share random directions.

    A filter-normalised direction has in each filter the norm of the model's own, so that models of different scale can
    be compared. Along a unit eigenvector the curvature at the model is the eigenvalue.
    """
    from flatlab.measuring.subjects import read_measurement
    from flatlab.measuring.surface import read_section, surface_run

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
    surface_run(paths, measurement, read_section(along, line, extent, points, seed), figure, json)
