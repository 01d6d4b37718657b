"""What `flatlab reproduce` does: plan a grid, run what is missing while a table fills, and make what comes of it."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from flatlab.cli.console import console, say, status, write_json
from flatlab.cli.presenting import present
from flatlab.cores import available_cores
from flatlab.errors import UsageError
from flatlab.federated.footprint import footprint
from flatlab.files import write_text
from flatlab.grid.carry import run_cells
from flatlab.grid.cell_progress import Progress, cell_progress
from flatlab.grid.cells import CellWork
from flatlab.grid.estimate import Calibration, calibrate, measuring_seconds, training_seconds
from flatlab.grid.plan import Cell, Grid, grid_cells, parse_grid, read_grid_text, require_named_model
from flatlab.runs.fingerprint import settled
from flatlab.runs.interruption import exit_status
from flatlab.runs.lines import LINE_SECONDS, duration


@dataclass(frozen=True)
class Where:
    """Where and how a grid is run; none of it changes a result."""

    out: Path | None = None
    jobs: int | None = None
    backend: str = "loky"
    scheduler: str | None = None
    device: str = "auto"
    data_root: Path | None = None
    trusted_model: str | None = None


@dataclass(frozen=True)
class Plan:
    """A grid, where its results lie, and the means to run it."""

    grid: Grid
    text: str  # the grid's TOML
    cells: tuple[Cell, ...]
    results: Path
    jobs: int
    device: str

    def progress(self) -> dict[str, Progress]:
        """How far every cell is."""
        return {cell.name: cell_progress(cell, self.results / cell.name) for cell in self.cells}


def run_grid(name: str, where: Where, json: Path | None) -> None:
    """Run what is missing, then make tables, figures and report.

    Exits with 1 if a cell failed or its folder holds another run, 130 after Ctrl-C, 143 after SIGTERM.
    """
    plan = _plan(name, where)
    write_text(plan.results / "grid.toml", plan.text)
    progress = plan.progress()
    todo = _todo(plan, progress)
    failures = {name: p.another for name, p in progress.items() if p.another}
    ended = _run_with_table(plan, todo, where) if todo else {}
    failures |= {name: reason for name, reason in ended.items() if reason}
    progress = plan.progress()
    write_json(json, {"results": str(plan.results), "cells": {n: _plain(p) for n, p in progress.items()}})
    done = sum(p.done for p in progress.values())
    now = sum(not reason for reason in ended.values())
    console.print(f"{done} of {len(plan.cells)} cells are done, {now} of them by this call.")
    for cell, reason in failures.items():
        console.print(f"[bold]{cell}[/bold] failed: {escape(reason)}", soft_wrap=True)
    if any(p.trained for p in progress.values()):
        present(plan.results)
    if failures:
        raise SystemExit(1)


def plan_grid(name: str, where: Where, json: Path | None) -> None:
    """Print what a call would do, and about how long it would take."""
    plan = _plan(name, where)
    progress = plan.progress()
    todo = _todo(plan, progress)
    seconds: dict[str, float] = {}
    held = ""
    if todo:
        with status.status("Calibrating: one client of every method"):
            calibration = calibrate(todo, torch.device(plan.device), where.data_root)
        seconds = {cell.name: _seconds(plan, cell, progress[cell.name], calibration) for cell in todo}
        largest = max((footprint(cell.config, calibration.parameters) for cell in todo), key=lambda each: each.bytes)
        held = largest.sentence()
    table = Table(title=escape(plan.grid.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("cells", overflow="fold")
    for heading in ("seeds", "done", "to train", "to measure", "time of one"):
        table.add_column(heading, justify="right")
    for row, cells in _rows(plan.cells).items():
        states = [progress[cell.name] for cell in cells]
        longest = max((seconds.get(cell.name, 0.0) for cell in cells), default=0.0)
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
    total = sum(seconds.values()) / plan.jobs
    console.print(
        f"{len(plan.cells)} cells in {plan.results}, {len(todo)} to do; {plan.jobs} at once on {plan.device}: "
        f"about {duration(total)}, if the machine has nothing else to do.",
        soft_wrap=True,
    )
    if held:
        console.print(f"The cell that holds most: {held}", markup=False, highlight=False, soft_wrap=True)
    write_json(json, {"results": str(plan.results), "jobs": plan.jobs, "seconds": total, "cells": seconds})


def _plan(name: str, where: Where) -> Plan:
    if where.backend not in ("loky", "dask"):
        raise UsageError(
            f"--backend is loky or dask, not {where.backend!r}; on a cluster, dask carries the grid to every machine."
        )
    if where.scheduler and where.backend != "dask":
        raise UsageError("--scheduler is the address of a Dask scheduler; add --backend dask.")
    if where.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device is auto, cpu or cuda, not {where.device!r}.")
    if where.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("There is no CUDA device here; leave --device out to use the CPU.")
    device = "cuda" if where.device != "cpu" and torch.cuda.is_available() else "cpu"
    text = read_grid_text(name)
    grid = parse_grid(text, name)
    require_named_model(grid, where.trusted_model, name)
    jobs = where.jobs or (available_cores() if device == "cpu" else 1)
    results = where.out or Path("checkpoints") / Path(name).stem
    cells = tuple(replace(cell, config=settled(cell.config, where.data_root)) for cell in grid_cells(grid))
    return Plan(grid, text, cells, results, jobs, device)


def _todo(plan: Plan, progress: Mapping[str, Progress]) -> list[Cell]:
    """The cells that are not done, but for those whose folder holds another run, which nobody touches."""
    return [cell for cell in plan.cells if not (progress[cell.name].done or progress[cell.name].another)]


def _seconds(plan: Plan, cell: Cell, progress: Progress, calibration: Calibration) -> float:
    trained = training_seconds(cell.config, cell.config.rounds - progress.rounds, calibration)
    return trained + measuring_seconds(cell.config, progress.missing, plan.grid.measure, calibration)


def _run_with_table(plan: Plan, todo: Sequence[Cell], where: Where) -> dict[str, str]:
    """Run `todo`; returns why each cell failed, or "" for one that did not."""
    work = CellWork(where.data_root, plan.device, where.trusted_model)
    ended: dict[str, str] = {}
    progress = plan.progress()
    began = time.monotonic()

    def table() -> Table:
        unfinished = [cell for cell in todo if not progress[cell.name].done]  # only they can change
        progress.update({cell.name: cell_progress(cell, plan.results / cell.name) for cell in unfinished})
        return _table(plan, progress, ended, len(todo), time.monotonic() - began)

    outcomes = run_cells(
        todo,
        plan.results,
        work,
        jobs=plan.jobs,
        backend="dask" if where.backend == "dask" else "loky",
        scheduler=where.scheduler,
        tell=say,
    )
    try:
        with _shown_now_and_then(table):
            for cell, failure in outcomes:
                ended[cell.name] = failure
                if not status.is_terminal:
                    say(f"{cell.name}: {failure or 'done'}")
    except KeyboardInterrupt as interruption:
        say("\nInterrupted; what was done is saved, and the same command goes on from here.")
        raise SystemExit(exit_status(interruption)) from interruption
    return ended


@contextmanager
def _shown_now_and_then(table: Callable[[], Table]) -> Iterator[None]:
    """Within the block the table is on the terminal as it fills; elsewhere it is printed every minute."""
    if status.is_terminal:
        with Live(get_renderable=table, console=status, refresh_per_second=1):
            yield
        return
    over = threading.Event()

    def show() -> None:
        while not over.wait(LINE_SECONDS):
            status.print(table())

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _table(plan: Plan, progress: Mapping[str, Progress], ended: Mapping[str, str], todo: int, seconds: float) -> Table:
    """The grid as it fills: a row per method and partition, a column per seed."""
    left = f", about {duration(seconds / len(ended) * (todo - len(ended)))} left" if ended else ""
    done = sum(p.done for p in progress.values())
    title = f"{escape(plan.grid.title)}: {done} of {len(plan.cells)} cells, {duration(seconds)}{left}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("test accuracy, or how far", overflow="fold")
    for seed in plan.grid.axes.seeds:
        table.add_column(f"seed {seed}", justify="right")
    for row, cells in _rows(plan.cells).items():
        by_seed = {cell.config.seed: cell for cell in cells}
        shown = (by_seed.get(seed) for seed in plan.grid.axes.seeds)
        table.add_row(row, *(_shown(cell, progress[cell.name], ended) if cell else "" for cell in shown))
    return table


def _shown(cell: Cell, progress: Progress, ended: Mapping[str, str]) -> str:
    if ended.get(cell.name) or progress.another:
        return "[red]failed[/red]"
    if progress.done:
        return f"[green]{progress.accuracy:.1%}[/green]"
    if progress.trained:
        return f"{progress.missing[0]} ..."
    return f"{progress.rounds}/{cell.config.rounds}" if progress.rounds else "[dim]·[/dim]"


def _rows(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells by what they have in common but for the seed."""
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.name.removesuffix(f"-s{cell.config.seed}"), []).append(cell)
    return rows


def _plain(progress: Progress) -> dict[str, Any]:
    return {
        "done": progress.done,
        "rounds": progress.rounds,
        "test_accuracy": progress.accuracy,
        "not_measured": list(progress.missing) if progress.trained else [],
        "failure": progress.failure,
    }
