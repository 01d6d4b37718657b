"""What `flatlab train` says of a run when it ends or is cut off."""

import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from figures.unconverged import is_unconverged
from flatlab.terminal.console import console

if TYPE_CHECKING:
    from flatlab.federated.config import RunConfig
    from flatlab.federated.execution import Execution
    from flatlab.runs.folder import RunFolder
    from flatlab.runs.metrics import Record


def cut_off(files: "RunFolder", interruption: KeyboardInterrupt, resuming: str) -> str:
    """What is left of the run, and how to go on: by the line `resuming`."""
    from flatlab.runs.interruption import Terminated

    what = "Terminated" if isinstance(interruption, Terminated) else "Interrupted"
    if files.resume_file.exists():
        return f"{what}. Go on with: {resuming}"
    return f"{what} before the first round ended: give the same command again."


def print_summary(config: "RunConfig", last: "Record", seconds: float) -> None:
    """Print the last evaluation of every model that the run has, the reported one marked."""
    from figures.labels import REPORTED

    reported = config.report if config.report in last["models"] else "server"
    title = f"{config.algorithm}{f' + MAN (zeta {config.zeta:g})' if config.man else ''} on {config.dataset}"
    if config.precision != "ieee":
        title += f", precision {config.precision}"
    table = Table(title=title, title_justify="left")
    for heading in ("model", "test accuracy", "test loss", "|a|², summed over layers"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, result in last["models"].items():
        norms = result["activation_norms"]
        mark = " *" if name == reported else ""
        table.add_row(f"{name}{mark}", f"{result['accuracy']:.2%}", f"{result['loss']:.4f}", f"{sum(norms):.4g}")
    console.print(table)
    further = f"a further model of {config.algorithm}"
    lines = [f"{name}: {REPORTED.get(name, further)}." for name in last["models"]]
    lines.append("* the model that this run reports, and that is measured by the commands.")
    lines += [f"{config.rounds} rounds, clients' own loss in training {last['train_loss']:.4f}, {seconds:.1f} s"]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def print_tracking(files: "RunFolder") -> None:
    """Say where the picture of the tracked eigenvalues is, and how many of them are not certified, if there are any."""
    tracked = [record["curvature"] for record in files.metrics.read() if "curvature" in record]
    if not tracked:
        return
    console.print(f"Eigenvalues: [bold]{_draw_tracking(files)}[/bold]", soft_wrap=True)
    values = [value for one in tracked for value in (one["global"], *one["layers"].values())]
    if count := sum(map(is_unconverged, values)):
        console.print(
            f"! {count} of {len(values)} tracked eigenvalues are not converged, or larger ones are not excluded: "
            "hollow in the figure, with converged = false in metrics.jsonl.",
            soft_wrap=True,
        )


def _draw_tracking(files: "RunFolder") -> Path:
    """Draw eigenvalue and accuracy against rounds from the run's own metrics; returns the picture's path."""
    from figures.tracked_eigenvalues import draw_tracking
    from flatlab.files import write_files
    from flatlab.runs.checkpoint import provenance

    drawing = draw_tracking({files.path.name: files.metrics.read()}, provenance())
    return write_files(files.path / "tracking", drawing.files())[0]


def resuming_line(
    files: "RunFolder",
    config: "RunConfig",
    execution: "Execution",
    data_root: Path | None,
    track: Sequence[str],
    json: Path | None,
) -> str:
    """The command that goes on with a run as it was asked for: its folder holds the rest of what the run is."""
    words = ["flatlab", "train", "--resume", "--out", str(files.path)]
    words += config.own_options("model", "dataset", "algorithm")
    words += [] if data_root is None else ["--data-root", str(data_root)]
    for field in fields(execution):
        value = getattr(execution, field.name)
        if value != field.default:
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{field.name.replace('_', '-')}", shown]
    words += [word for name in track for word in ("--track", name)]
    words += [] if json is None else ["--json", str(json)]
    return shlex.join(words)


def measuring_line(files: "RunFolder", config: "RunConfig", data_root: Path | None) -> str:
    """The command that measures a finished run."""
    words = ["flatlab", "eigs", str(files.final), *config.own_options("model", "dataset")]
    return shlex.join(words + ([] if data_root is None else ["--data-root", str(data_root)]))
