"""The table of a grid that fills while `flatlab reproduce` runs it."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from flatlab.terminal.console import say, status

if TYPE_CHECKING:
    from flatlab.grid.cell_progress import Progress
    from flatlab.grid.plan import Cell
    from flatlab.grid.reproduction import Reproduction


def run_with_table(reproduction: "Reproduction", todo: "Sequence[Cell]") -> dict[str, str]:
    """Run `todo`; returns why each cell failed, or "" for one that did not."""
    from flatlab.runs.interruption import exit_status

    ended: dict[str, str] = {}
    progress = reproduction.progress()
    began = time.monotonic()

    def table() -> Table:
        unfinished = [cell for cell in todo if not progress[cell.name].done]  # only they can change
        progress.update({cell.name: reproduction.progress_of(cell) for cell in unfinished})
        return _table(reproduction, progress, ended, len(todo), time.monotonic() - began)

    try:
        with _shown_now_and_then(table):
            for cell, failure in reproduction.run(todo, say):
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
    from flatlab.runs.lines import LINE_SECONDS

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


def _table(
    reproduction: "Reproduction",
    progress: "Mapping[str, Progress]",
    ended: Mapping[str, str],
    todo: int,
    seconds: float,
) -> Table:
    """The grid as it fills: a row per method and partition, a column per seed."""
    from flatlab.runs.lines import duration

    left = f", about {duration(seconds / len(ended) * (todo - len(ended)))} left" if ended else ""
    done = sum(progress[cell.name].done for cell in reproduction.chosen)
    title = f"{escape(reproduction.grid.title)}: {done} of {len(reproduction.chosen)} cells, {duration(seconds)}{left}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("test accuracy, or how far", overflow="fold")
    for seed in reproduction.grid.axes.seeds:
        table.add_column(f"seed {seed}", justify="right")
    for row, cells in rows_of(reproduction.chosen).items():
        by_seed = {cell.config.seed: cell for cell in cells}
        shown = (by_seed.get(seed) for seed in reproduction.grid.axes.seeds)
        table.add_row(row, *(_shown(cell, progress[cell.name], ended) if cell else "" for cell in shown))
    return table


def _shown(cell: "Cell", progress: "Progress", ended: Mapping[str, str]) -> str:
    if ended.get(cell.name) or progress.another:
        return "[red]failed[/red]"
    if progress.done:
        return f"[green]{progress.accuracy:.1%}[/green]"
    if progress.trained:
        return f"{progress.missing[0]} ..."
    return f"{progress.rounds}/{cell.config.rounds}" if progress.rounds else "[dim]·[/dim]"


def rows_of(cells: "Sequence[Cell]") -> "dict[str, list[Cell]]":
    """The cells by what they have in common but for the seed."""
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.name.removesuffix(f"-s{cell.config.seed}"), []).append(cell)
    return rows
