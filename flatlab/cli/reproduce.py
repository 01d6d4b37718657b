"""`flatlab reproduce`: a grid of runs, while a table fills, and what comes of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from flatlab.cli.console import require_places, write_json
from flatlab.cli.figures import print_skipped
from flatlab.cli.grid_table import rows_of, run_with_table
from flatlab.cli.options import choice, folder
from flatlab.grid.shipped import shipped_grids
from flatlab.terminal.console import console, status
from flatlab.trackers import TRACKERS

if TYPE_CHECKING:
    from flatlab.grid.cell_progress import Progress
    from flatlab.grid.reproduction import Reproduction


def reproduce(
    grid: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(shipped_grids())}, or a TOML file of your own.", autocompletion=lambda: shipped_grids()
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", parser=folder, help="Folder of the results (default: checkpoints/<grid>)."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once (default: one per core, or one per GPU).")
    ] = None,
    jobs_per_gpu: Annotated[
        int | None, typer.Option(min=1, help="Runs at once on each GPU (default: 1), if its memory holds them.")
    ] = None,
    backend: Annotated[
        str,
        choice(
            "loky",
            "dask",
            help="loky: processes on this machine; dask: a cluster (pip install 'flatlab\\[dask]').",
        ),
    ] = "loky",
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler; without it, a cluster on this machine.")
    ] = None,
    device: Annotated[str, choice("auto", "cpu", "cuda", help="auto: cuda where there is one.")] = "auto",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder that holds local copies of data sets (or FLATLAB_DATA).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Let this package.module:function, which the grid names as its model, run.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="CELLS", help="Run the cells of these names alone, as 'fedavg*-s0'; may be repeated."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="A field of every cell, over the grid's \\[common]; may be repeated."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Let this package.module:function, which the grid names as its data set, run.")
    ] = None,
    algorithm: Annotated[
        list[str] | None,
        typer.Option(metavar="package.module:ALGORITHM", help="Let this, which the grid names, run; may be repeated."),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"Send every run to {', '.join(TRACKERS)}; may be repeated."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Run the I-th of N shares of the cells: a job of an array.")
    ] = None,
    list_cells: Annotated[
        bool, typer.Option("--list-cells", help="Print each cell, its state and how far it is, and leave.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, with an estimate of its time from a short calibration.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write what became of each cell to this file.")] = None,
) -> None:
    """Run a grid of methods x MAN x partitions x seeds, then make its tables, figures and report.

    Only what is missing is done: after an interruption, or with more seeds in the grid, the same command goes on. A
    cell that fails does not stop the others; it is listed with its reason and tried again by the next call. A folder
    that holds another run than the grid describes is named and left alone; cells that another call has in work are
    waited for. Of calls that run shares of a grid, the last makes tables, figures and report.
    """
    from flatlab.grid.reproduction import Where, read_reproduction
    from flatlab.grid.shards import read_shard
    from flatlab.trackers.follower import read_trackers

    require_places([json])
    trackers = read_trackers(track or ())
    part, own = read_shard(shard), tuple(algorithm or ())
    where = Where(out, jobs, backend, scheduler, device, data_root, model, dataset, own, jobs_per_gpu, trackers, part)
    reproduction = read_reproduction(grid, where, only or (), settings or ())
    if list_cells:
        _print_cells(reproduction, json)
    elif dry_run:
        _print_plan(reproduction, json)
    else:
        _run(reproduction, json)


def _run(reproduction: "Reproduction", json: Path | None) -> None:
    """Run what is missing, then make tables, figures and report.

    Exits with 1 if a cell failed or its folder holds another run, 130 after Ctrl-C, 143 after SIGTERM.
    """
    progress = reproduction.progress()
    if not all(each.another for each in progress.values()):  # or the grid that is there would no longer be reported
        reproduction.begin()
    todo = reproduction.todo(progress)
    failures = {cell.name: progress[cell.name].another for cell in reproduction.chosen if progress[cell.name].another}
    ended = run_with_table(reproduction, todo) if todo else {}
    failures |= {name: reason for name, reason in ended.items() if reason}
    progress = reproduction.progress()
    write_json(json, {"results": str(reproduction.results), "cells": {n: _plain(p) for n, p in progress.items()}})
    done = sum(p.done for p in progress.values())
    now = sum(not reason for reason in ended.values())
    console.print(f"{done} of {len(reproduction.cells)} cells are done, {now} of them by this call.")
    for cell, reason in failures.items():
        console.print(f"[bold]{cell}[/bold] failed: {escape(reason)}", soft_wrap=True)
    if any(p.trained for p in progress.values()):
        if reproduction.where.shard.of == 1 or reproduction.is_over(progress):
            _present(reproduction.results)
        else:
            console.print(f"The last share makes the tables and the report; or flatlab report {reproduction.results}.")
    if failures:
        raise SystemExit(1)


def _present(folder: Path) -> None:
    """Make tables, figures and report, and print the tables."""
    from flatlab.grid.pages import make_pages, write_report

    with status.status("Drawing"):
        pages = make_pages(folder)
        page = write_report(pages, None)
    for made in pages.tables:
        table = Table(title=escape(made.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for i, heading in enumerate(made.columns):
            table.add_column(escape(heading), justify="left" if i < 2 else "right")
        for row in made.rows:
            table.add_row(*map(escape, row))
        console.print(table)
        for note in made.doubts:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    print_skipped(pages.skipped)
    console.print(
        f"Tables:  {folder / 'tables'}\nFigures: {folder / 'figures'}\nReport:  [bold]{page}[/bold]", soft_wrap=True
    )


def _print_cells(reproduction: "Reproduction", json: Path | None) -> None:
    """Print the cells of this call, one a line for other programs: name, state, rounds done of all."""
    progress = reproduction.progress()
    states = reproduction.states(progress)
    for cell in reproduction.chosen:
        line = f"{cell.name}  {states[cell.name]}  {progress[cell.name].rounds}/{cell.config.rounds}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    cells = {cell.name: {"state": states[cell.name], **_plain(progress[cell.name])} for cell in reproduction.chosen}
    write_json(json, {"results": str(reproduction.results), "cells": cells})


def _print_plan(reproduction: "Reproduction", json: Path | None) -> None:
    """Print what a call would do, and about how long it would take."""
    from flatlab.runs.lines import duration

    progress = reproduction.progress()
    with status.status("Calibrating: one client of every method"):
        cost = reproduction.cost(progress)
    table = Table(title=escape(reproduction.grid.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("cells", overflow="fold")
    for heading in ("seeds", "done", "to train", "to measure", "time of one"):
        table.add_column(heading, justify="right")
    for row, cells in rows_of(reproduction.chosen).items():
        states = [progress[cell.name] for cell in cells]
        longest = max((cost.cells.get(cell.name, 0.0) for cell in cells), default=0.0)
        counts = (
            len(cells),
            sum(p.done for p in states),
            sum(not p.trained for p in states),
            sum(p.trained and bool(p.missing) for p in states),
        )
        table.add_row(row, *map(str, counts), duration(longest) if longest else "")
    console.print(table)
    for name, state in progress.items():
        if state.another:
            console.print(f"[bold]{name}[/bold] is left out: {escape(state.another)}", soft_wrap=True)
    results, jobs = str(reproduction.results), reproduction.jobs
    console.print(
        f"{len(reproduction.cells)} cells in {results}, {len(cost.cells)} to do; {jobs} at once on "
        f"{reproduction.device}: about {duration(cost.seconds)}, if the machine has nothing else to do.",
        soft_wrap=True,
    )
    if cost.largest:
        held = cost.largest.sentence()
        console.print(f"The cell that holds most: {held}", markup=False, highlight=False, soft_wrap=True)
    write_json(json, {"results": results, "jobs": jobs, "seconds": cost.seconds, "cells": dict(cost.cells)})


def _plain(progress: "Progress") -> dict[str, Any]:
    return {
        "done": progress.done,
        "rounds": progress.rounds,
        "test_accuracy": progress.accuracy,
        "not_measured": list(progress.missing) if progress.trained else [],
        "failure": progress.failure,
    }
