"""`flatlab reproduce`: the options of a grid of runs."""

from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    grid: Annotated[
        str, typer.Argument(help="toy, cifar100-small, cifar100, tiny-imagenet, cifar10, or a TOML file of your own.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the results (default: checkpoints/<grid>).")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once (default: one per core; one on a GPU).")] = None,
    backend: Annotated[
        str, typer.Option(help="loky: processes on this machine; dask: a cluster (pip install 'flatlab[dask]').")
    ] = "loky",
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler; without it, a cluster on this machine.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")] = "auto",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder that holds local copies of data sets (or FLATLAB_DATA).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Let this package.module:function, which the grid names as its model, run.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, with an estimate of its time from a short calibration.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write what became of each cell to this file.")] = None,
) -> None:
    """Run a grid of methods x MAN x partitions x seeds, then make its tables, figures and report.

    Only what is missing is done: after an interruption, or with more seeds in the grid, the same command goes on. A
    cell that fails does not stop the others; it is listed with its reason and tried again by the next call. A folder
    that holds another run than the grid describes is named and left alone; cells that another call has in work are
    waited for.
    """
    from flatlab.cli.reproducing import Where, plan_grid, run_grid

    where = Where(out, jobs, backend, scheduler, device, data_root, model)
    if dry_run:
        plan_grid(grid, where, json)
    else:
        run_grid(grid, where, json)
