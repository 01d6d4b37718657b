"""Which samples a client trains on, step by step, and how each is augmented; drawn from the client's own stream."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Generator, Tensor

from flatlab.federated.augment import Draws, draw
from flatlab.federated.config import RunConfig


@dataclass(frozen=True)
class Batch:
    """One local step's samples."""

    index: Tensor  # (b,) int64, positions among the client's own samples
    draws: Draws | None  # of b samples, or None where the data set is not augmented


def nominal_steps(mean_samples: float, config: RunConfig) -> int:
    """Return K = E * ceil(mean_i n_i / B)."""
    return config.local_epochs * ceil(mean_samples / config.batch_size)


def local_batches(
    samples: int, config: RunConfig, generator: Generator, *, augment: bool, steps: int | None
) -> Iterator[Batch]:
    """Yield a client's batches of one round: E epochs, each shuffled, last partial batch kept.

    With `steps`, exactly that many batches instead, over as many epochs as it takes.
    """
    left = config.local_epochs * ceil(samples / config.batch_size) if steps is None else steps
    while left > 0:
        order = torch.randperm(samples, generator=generator)
        for index in order.split(config.batch_size)[:left]:
            yield Batch(index, draw(len(index), generator) if augment else None)
            left -= 1
