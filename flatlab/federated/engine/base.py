"""What an engine takes and gives; which engine runs a round never changes the round's meaning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from flatlab.errors import UsageError
from flatlab.federated.world import World
from flatlab.tell import Tell, silent

PATIENCE = 300.0
"""Default seconds that a round waits for a node of a federation that is not there."""

SIMULATION = "simulation"
"""In place of the name of a SuperLink: Flower's simulation, on this machine."""


@dataclass(frozen=True)
class RoundInputs:
    """What goes out to the C participants of round t."""

    t: int
    ids: list[int]  # the participants, ascending
    w: Tensor  # (P,)
    own: Mapping[str, Tensor]  # name: (C, P)
    server: Mapping[str, Tensor]  # name: (P,)
    saved: int = 0  # the newest round that the run's folder holds whole, from which a run that is cut off goes on


@dataclass(frozen=True)
class RoundOutputs:
    """What comes back."""

    theta: Tensor  # (C, P)
    after: Mapping[str, Tensor]  # name: (C, P), the participants' own vectors as the round ended
    losses: list[float]  # (C,), mean data loss f_i over the client's local steps, each weighed by its samples
    images: int  # samples that passed forward and backward, both passes of a SAM-type step counted once
    before: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # name: (C, P), as it began, where clients keep their own

    def to(self, device: torch.device) -> "RoundOutputs":
        """The same with its tensors on `device`."""
        after, before = ({k: x.to(device) for k, x in vectors.items()} for vectors in (self.after, self.before))
        return replace(self, theta=self.theta.to(device), after=after, before=before)


@dataclass(frozen=True)
class Evaluation:
    """One model on the test set."""

    accuracy: float  # share of right answers, 0..1
    loss: float  # mean cross-entropy
    activation_norms: list[float]  # mean_n |a_l|^2 over the samples, for each hidden layer l


@dataclass(frozen=True)
class Means:
    """What an engine may use; none of it changes a result by more than rounding."""

    workers: int  # processes on the CPU
    device: torch.device
    slots: int  # the largest number of participants of any round
    folder: Path = Path()  # the run's, for what an engine itself writes
    tell: Tell = silent  # takes what there is to say of the engine's processes
    superlink: str | None = None  # connection of Flower's configuration, or SIMULATION; None: nodes on this machine
    patience: float = PATIENCE  # seconds that a round waits for a node of a federation that is not there


class Engine(Protocol):
    """Runs clients and evaluates models; use as a context manager."""

    def run(self, inputs: RoundInputs) -> RoundOutputs:
        """Train the participants of one round."""

    def evaluate(self, models: Sequence[Tensor]) -> list[Evaluation]:
        """Evaluate each flat vector (P,) on the test set."""

    def __enter__(self) -> "Engine": ...

    def __exit__(self, *exception: object) -> None: ...


def is_of_memory(error: Exception) -> bool:
    """Whether it says that memory is short, as torch and the libraries below it put it."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in words or "alloc_failed" in words


def no_room_for_a_step(model: str, said: str) -> UsageError:
    """What to say where not even one client's step fits the device, which `said` so."""
    return UsageError(
        f"The device has no memory for a local step of {model} ({said}); use --device cpu, or smaller batches."
    )


def refuse_own_draws(world: World) -> None:
    """Raise `UsageError` where an own algorithm's client draws random numbers: those of a stack have none each."""
    if world.draws:
        raise UsageError(
            f"The algorithm {world.config.algorithm} draws random numbers in its {world.draws}, which clients that "
            "train together would share; use --engine process, which trains each by itself."
        )
