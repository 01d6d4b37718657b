"""One federated run with its progress, its summary, and what to do next."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from flatlab.cli.console import require_places, write_json
from flatlab.cli.run_summary import cut_off, measuring_line, print_summary, print_tracking, resuming_line
from flatlab.terminal.console import console, say

if TYPE_CHECKING:
    from flatlab.federated.config import RunConfig
    from flatlab.federated.execution import Execution
    from flatlab.federated.rounds import Run
    from flatlab.runs.metrics import Record


def train_run(
    config: "RunConfig",
    out: Path | None = None,
    execution: "Execution | None" = None,
    *,
    data_root: Path | None = None,
    track: Sequence[str] = (),
    json: Path | None = None,
) -> Path:
    """Carry out one run, or go on with it, with its progress display; returns the path of its final checkpoint.

    Raises `FlatlabError` (`UsageError` where the folder holds another run), and `SystemExit` with code 130 after Ctrl-C
    and 143 after SIGTERM, when it has said how to go on.
    """
    from flatlab.federated.execution import Execution, carry_out
    from flatlab.federated.trial import statement
    from flatlab.measuring.probe import curvature_probe
    from flatlab.runs.folder import RunFolder, default_folder
    from flatlab.runs.interruption import exit_status
    from flatlab.terminal.progress import bar
    from flatlab.trackers.follower import read_trackers

    require_places([json])
    execution = execution or Execution()
    trackers = read_trackers(track)
    files = RunFolder(out or default_folder(config))
    began = time.monotonic()

    @contextmanager
    def watch(run: "Run") -> Iterator[Callable[["Record"], None]]:
        if said := statement(run.world):
            console.print(said, markup=False, highlight=False, soft_wrap=True)
        with bar(run, trackers) as on_round:
            yield on_round

    try:
        last = carry_out(
            config,
            files.path,
            execution,
            data_root=data_root,
            tell=say,
            watch=watch,
            make_probe=curvature_probe,
        )
    except KeyboardInterrupt as interruption:
        resuming = resuming_line(files, config, execution, data_root, track, json)
        say(f"\n{cut_off(files, interruption, resuming)}")
        raise SystemExit(exit_status(interruption)) from interruption
    seconds = time.monotonic() - began
    print_summary(config, last, seconds)
    summary = {name: last[name] for name in ("test_accuracy", "train_loss", "images_per_second")}
    write_json(json, {"checkpoint": str(files.final), "rounds": config.rounds, **summary, "seconds": seconds})
    if execution.track_eigs:
        print_tracking(files)
    final, following = escape(str(files.final)), escape(measuring_line(files, config, data_root))
    console.print(f"Checkpoint: [bold]{final}[/bold]\nNext:       [bold]{following}[/bold]", soft_wrap=True)
    return files.final
