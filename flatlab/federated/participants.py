"""Who takes part in a round."""

import torch

from flatlab.federated.config import RunConfig
from flatlab.federated.streams import stream

MOST_DRAWN = 10**7
"""Draws, rounds times clients, that are made beforehand to learn how many clients may ever be needed at once."""


def sample_clients(config: RunConfig, t: int) -> list[int]:
    """The participants of round t, ascending: a share of exactly max(1, round(p N)), or each client with chance p.

    The Bernoulli draw is repeated while it is empty.
    """
    generator = stream(config.seed, "sampling", t)
    if config.sampling == "fixed":
        count = max(1, round(config.participation * config.clients))
        return sorted(torch.randperm(config.clients, generator=generator)[:count].tolist())
    while True:
        chosen = (torch.rand(config.clients, generator=generator) < config.participation).nonzero().flatten().tolist()
        if chosen:
            return chosen


def most_participants(config: RunConfig) -> int:
    """The largest number of participants that any round of the run has, or more where counting them all takes long."""
    if config.sampling == "fixed":
        return len(sample_clients(config, 0))
    if config.rounds * config.clients > MOST_DRAWN:
        return config.clients
    return max(len(sample_clients(config, t)) for t in range(config.rounds))
