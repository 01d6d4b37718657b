"""What a run will hold, said beforehand: the vectors of its clients in memory and on the disk."""

from dataclasses import dataclass

import torch

from flatlab.federated.config import RunConfig
from flatlab.federated.state import LAST, Place

MUCH = 10**9
"""Bytes from which a run says at its start what it will hold."""


@dataclass(frozen=True)
class Footprint:
    """Clients' vectors once every client has taken part."""

    clients: int  # N
    vectors: tuple[str, ...]  # names of each client's vectors
    size: int  # P, entries of a vector
    entry: int  # bytes

    @property
    def bytes(self) -> int:
        """N x vectors x P x bytes of an entry."""
        return self.clients * len(self.vectors) * self.size * self.entry

    def sentence(self, place: Place = "memory") -> str:
        """What the run holds in memory and on disk; a save holds what it replaces until it is complete."""
        if not self.vectors:
            return "The clients keep no vectors between rounds."
        amount = human(self.bytes)
        where = f"{amount} in memory and as much" if place == "memory" else f"{amount}, and none of it in memory,"
        names, count = ", ".join(self.vectors), len(self.vectors)
        return (
            f"The clients' vectors will hold {where} on disk, twice that during a save: {self.clients:,} clients x "
            f"{count} ({names}) x {self.size:,} parameters x {self.entry} bytes."
            + ("" if place == "disk" else " --state disk keeps them out of memory." if self.bytes >= MUCH else "")
        )


def footprint(config: RunConfig, size: int) -> Footprint:
    """What the run `config` of a model of `size` parameters will hold."""
    vectors = (*config.rules.own, *((LAST,) if config.reports_all else ()))
    entry = torch.empty(0, dtype=getattr(torch, config.dtype)).element_size()
    return Footprint(config.clients, vectors, size, entry)


def human(count: float) -> str:
    """Bytes as kB, MB, GB or TB, of a thousand each."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
