"""trackio; TRACKIO_PROJECT, TRACKIO_DIR and its other variables say where runs go."""

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout

import trackio

from flatlab.trackers.base import PROJECT, Tracked


class Tracker:
    """One run of trackio, called after the folders that it lies in: trackio knows a run by its name."""

    def start(self, run: Tracked) -> str:
        """Begin a run, or go on with it."""
        name = run.known_as or f"{run.group}/{run.name}"
        with redirect_stdout(sys.stderr):  # it prints, and standard output is the command's
            self.run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=name,
                group=run.group,
                resume="allow" if run.known_as else "never",
                config=dict(run.settings),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return name

    def log(self, numbers: Mapping[str, float], round_: int) -> None:
        """Send the numbers."""
        self.run.log(dict(numbers), step=round_)

    def finish(self) -> None:
        """Wait until everything is in its place."""
        with redirect_stdout(sys.stderr):
            self.run.finish()
