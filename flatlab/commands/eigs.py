"""`flatlab eigs`: the top of the Hessian spectrum of one or more checkpoints."""

from pathlib import Path
from typing import Annotated

import typer


def eigs(
    checkpoints: Annotated[list[Path], typer.Argument(metavar="CKPT...", help="Checkpoints of flatlab train.")],
    top_k: Annotated[int, typer.Option(min=1, help="Eigenvalues per network and layer.")] = 1,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Training samples of the loss (default: 2000, or all if fewer).")
    ] = None,
    layers: Annotated[str, typer.Option(help="Layers to measure: all, none, or names separated by commas.")] = "all",
    method: Annotated[str, typer.Option(help="lanczos, or power (iteration with deflation).")] = "lanczos",
    backend: Annotated[str, typer.Option(help="flatlab, or pyhessian as an independent check.")] = "flatlab",
    tol: Annotated[float, typer.Option(help="Stop where |Hv - lambda v| is below this share of |lambda|.")] = 1e-3,
    max_iter: Annotated[int, typer.Option(min=1, help="Most products per eigenvalue.")] = 1000,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder that holds local copies of data sets (or FLATLAB_DATA).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Let this package.module:function, which the checkpoint names, run.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers to this file too.")] = None,
) -> None:
    """Measure how flat a checkpoint is: top Hessian eigenvalues of the network and of every layer.

    Each eigenvalue comes with its residual |Hv - lambda v|: an eigenvalue of H lies within that distance. Beside each
    layer stands the mean squared norm of the activation that enters and that leaves it. Several checkpoints are shown
    side by side, as ratios to the first. The loss is the mean cross-entropy (without MAN) on training samples.
    """
    from flatlab.commands.measuring import Measurement, eigs_run

    measurement = Measurement(samples, dtype, device, data_root, model)
    eigs_run(checkpoints, measurement, top_k, layers, method, backend, tol, max_iter, json)
