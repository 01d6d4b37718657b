"""What every way to divide a training set is given."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """How skewed a split is; each way reads the field of its own."""

    delta: float | None = None  # concentration of a Dirichlet distribution, positive
    classes_per_client: float | None = None  # a whole number, as the next
    shards_per_client: float | None = None
    sigma: float | None = None  # standard deviation of the logarithm of a client's size, not negative


@dataclass(frozen=True)
class Task:
    """A training set to divide among at most as many clients as it has samples."""

    classes: Indices  # (n,) 0..C-1, each of which there is
    clients: int
    seed: int
    options: Options
    owners: Indices | None = None  # (n,) the client that each sample belongs to as the data know it

    @property
    def rng(self) -> np.random.Generator:
        """A generator at the start of the split's stream."""
        return np.random.default_rng(self.seed)
