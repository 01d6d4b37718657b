"""What the participants of a round will see, drawn at once: every step's samples and how each is augmented."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from flatlab.federated.augment import Draws
from flatlab.federated.engine.sequential import client_batches
from flatlab.federated.world import World


@dataclass(frozen=True)
class RoundPlan:
    """The local steps of C participants, of at most S steps with at most B samples; the rest of the tables is padding.

    The samples are those that the sequential engine draws.
    """

    lengths: list[list[int]]  # of each participant, the samples of each of its steps
    position: Tensor  # (C, S, B) int64, in the training set
    draws: Draws | None  # of (C, S, B) samples

    @property
    def steps(self) -> int:
        """S, the steps of the participant that takes most."""
        return self.position.shape[1]

    def to(self, device: torch.device) -> "RoundPlan":
        """The same with its tables on `device`, in one copy that a GPU makes while the host goes on."""
        table = torch.stack(self._tables())
        if device.type == "cuda":
            table = table.pin_memory()
        there = table.to(device, non_blocking=True)
        moved = None if self.draws is None else Draws(there[1].bool(), there[2], there[3])
        return RoundPlan(self.lengths, there[0], moved)

    def part(self, clients: slice, steps: slice, width: int | None = None) -> tuple[Tensor, Draws | None]:
        """Positions (n,) and draws of some participants' steps, one after the other, the first `width` of each (B)."""
        position, *rest = (x[clients, steps, :width].flatten() for x in self._tables())
        return position, Draws(*rest) if rest else None

    def _tables(self) -> list[Tensor]:
        draws = self.draws
        return [self.position] if draws is None else [self.position, draws.flip, draws.shift_y, draws.shift_x]


def most_steps(world: World) -> int:
    """The largest number of local steps of any client of the run."""
    if world.config.rules.exact_steps:
        return world.steps
    longest = max(len(part) for part in world.parts)
    return world.config.local_epochs * -(-longest // world.config.batch_size)


def plan_round(world: World, t: int, ids: Sequence[int]) -> RoundPlan:
    """Draw what clients `ids` see in round t, each from its own stream."""
    batches = [list(client_batches(world, t, k)) for k in ids]
    lengths = [[len(batch.index) for batch in own] for own in batches]
    S, B = max(map(len, lengths)), max(max(own) for own in lengths)
    own_position = [torch.from_numpy(world.parts[k]) for k in ids]
    position = [p[_table([b.index for b in own], S, B)] for p, own in zip(own_position, batches, strict=True)]
    if not world.data.augment:
        return RoundPlan(lengths, torch.stack(position), None)
    draws = [[b.draws for b in own if b.draws is not None] for own in batches]
    flip, shift_y, shift_x = (
        torch.stack([_table([getattr(d, name) for d in own], S, B) for own in draws])
        for name in ("flip", "shift_y", "shift_x")
    )
    return RoundPlan(lengths, torch.stack(position), Draws(flip, shift_y, shift_x))


def _table(rows: list[Tensor], S: int, B: int) -> Tensor:
    """Rows (b_s,) as one (S, B), zeros beyond."""
    table = pad_sequence(rows, batch_first=True)
    return F.pad(table, (0, B - table.shape[1], 0, S - table.shape[0]))
