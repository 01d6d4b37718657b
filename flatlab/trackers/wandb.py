"""Weights & Biases; WANDB_PROJECT, WANDB_MODE and its other variables say where runs go."""

import os
import uuid
from collections.abc import Mapping

import wandb

from flatlab.trackers.base import FINISH_SECONDS, PROJECT, Tracked


class Tracker:
    """One run at Weights & Biases, of which rounds are an axis: a round that comes again is no step backwards."""

    def start(self, run: Tracked) -> str:
        """Begin a run, or go on with it."""
        name = run.known_as or uuid.uuid4().hex
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=name,
            resume="allow",
            name=run.name,
            group=run.group,
            dir=str(run.folder),
            config=dict(run.settings),
            settings=wandb.Settings(silent=True, console="off", finish_timeout=FINISH_SECONDS),
        )
        self.run.define_metric("round")
        self.run.define_metric("*", step_metric="round")
        return name

    def log(self, numbers: Mapping[str, float], round_: int) -> None:
        """Send the numbers."""
        self.run.log({**numbers, "round": round_})

    def finish(self) -> None:
        """Wait until everything is sent, or in its place on this disk."""
        self.run.finish()
