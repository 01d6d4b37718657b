"""Which of the clients' own vectors the server of an algorithm reads: no others leave their nodes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.algorithms.base import Round
from flatlab.federated.streams import seeded
from flatlab.federated.world import World

ROUNDS = 1000
"""Most rounds that are looked at."""


@dataclass(frozen=True)
class Needs:
    """Names of the vectors that `Algorithm.combine` reads."""

    before: tuple[str, ...]  # as the round began
    after: tuple[str, ...]  # as it ended


class _Watched(Mapping[str, Tensor]):
    """Remembers which entries were read."""

    def __init__(self, vectors: Mapping[str, Tensor]) -> None:
        self.vectors = {name: vector.unsqueeze(0) for name, vector in vectors.items()}
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return self.vectors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.vectors)

    def __len__(self) -> int:
        return len(self.vectors)


def needs_of(world: World) -> Needs:
    """Combine rounds of one client and one parameter, and see what is read.

    A user's own `combine` may read under conditions that these do not meet: it gets all.
    """
    config, rules = world.config, world.config.rules
    if config.algorithm not in ALGORITHMS:
        return Needs(rules.own, rules.own)
    w = torch.zeros(1, dtype=world.dtype)
    own, server = world.initial(w)
    before, after = _Watched(own), _Watched(own)
    for t in range(min(config.rounds, ROUNDS)):
        round_ = Round(
            w=w,
            theta=w.unsqueeze(0),
            samples=world.samples[:1],
            wt=world.wt[:1],
            before=before,
            after=after,
            server=server,
            hyper=config.hyperparameters,
            N=config.clients,
            t=t,
            eta=config.learning_rate(t),
            K=world.steps,
        )
        with seeded(config.seed, "combine", t):
            rules.combine(round_)
    return Needs(*(tuple(name for name in rules.own if name in watched.read) for watched in (before, after)))
