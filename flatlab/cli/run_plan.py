"""What a run would be, before it is carried out."""

from pathlib import Path
from typing import TYPE_CHECKING

from flatlab.cores import available_cores
from flatlab.terminal.console import console, status

if TYPE_CHECKING:
    from flatlab.federated.config import RunConfig


def print_plan(config: "RunConfig", out: Path | None, data_root: Path | None) -> None:
    """Print the configuration, where it would go, what it would hold in memory, and about how long it would take."""
    import tomli_w

    from flatlab.federated.footprint import footprint
    from flatlab.grid.estimate import calibrate, training_seconds
    from flatlab.runs.fingerprint import settled
    from flatlab.runs.folder import RunFolder, default_folder
    from flatlab.runs.lines import duration

    config = settled(config, data_root)
    files = RunFolder(out or default_folder(config))
    with status.status("Calibrating: one client's epoch"):
        speeds = calibrate([config], "cpu", data_root)
    console.print(tomli_w.dumps(config.plain()), markup=False, highlight=False)
    console.print(f"{speeds.parameters:,} parameters, {speeds.train_images:,} training samples.", highlight=False)
    say_held = footprint(config, speeds.parameters).sentence()
    console.print(say_held, markup=False, highlight=False, soft_wrap=True)
    console.print(
        files.refusal(config) or f"It would go to {files.path}.", markup=False, highlight=False, soft_wrap=True
    )
    seconds = training_seconds(config, config.rounds, speeds)
    console.print(f"One worker on a CPU takes about {duration(seconds)}; {available_cores()} run at once here.")
