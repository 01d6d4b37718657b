"""Clients of equal size whose class distributions are drawn from a Dirichlet distribution."""

import numpy as np

from flatlab.errors import UsageError
from flatlab.federated.partition.task import Indices, Task

SMALLEST_PRIOR = 1e-300
"""Least class probability of a client; it only matters once every likelier class has run out."""


def by_dirichlet(task: Task) -> list[Indices]:
    """Give every client the same number of samples and a class prior of its own, p_k ~ Dir(delta, ..., delta).

    One sample at a time, a random client with room draws a class from p_k and takes a sample of it; a class that has
    run out leaves every prior, which is then normalised again. Small `delta` makes clients of few classes, large
    `delta` approaches iid. Sizes differ by one at most. Source: Acar et al., "Federated Learning Based on Dynamic
    Regularization" (2021).

    The draws are those of `flwr_datasets`' InnerDirichletPartitioner, number by number, whose cost per sample grows
    with the number of clients (10,000 clients: a minute). Like it, a full client is drawn once more before it is left
    out. Unlike it, a floor lies under the priors, which hold exact zeros at small delta: once a client's few classes
    had run out nothing would be left to normalise. It lies far below any probability that is ever chosen.

    Raises:
        UsageError: `delta` is not a positive finite number.
    """
    delta = positive_delta(task)
    rng = np.random.Generator(np.random.PCG64(task.seed))
    pools = [np.flatnonzero(task.classes == label) for label in range(task.classes.max() + 1)]
    left = [len(pool) for pool in pools]
    priors = np.maximum(rng.dirichlet(np.full(len(pools), delta), task.clients), SMALLEST_PRIOR)
    parts = [np.empty(len(part), dtype=np.int64) for part in np.array_split(task.classes, task.clients)]
    room = [len(part) for part in parts]
    open_clients = list(range(task.clients))
    unplaced = len(task.classes)
    while unplaced:
        place = rng.integers(0, len(open_clients))
        client = open_clients[place]
        if room[client] == 0:
            del open_clients[place]
            continue
        while left[label := _drawn(rng, priors[client])] == 0:
            priors[:, label] = 0
            priors = priors / priors.sum(axis=1, keepdims=True)
        room[client] -= 1
        left[label] -= 1
        parts[client][room[client]] = pools[label][left[label]]
        unplaced -= 1
    return parts


def positive_delta(task: Task) -> float:
    """The concentration of a Dirichlet distribution; raises `UsageError` where there is none that can be drawn from."""
    delta = task.options.delta
    if delta is None or not 0 < delta < float("inf"):
        raise UsageError(f"The Dirichlet split needs a positive finite delta, but delta is {delta}.")
    return float(delta)


def _drawn(rng: np.random.Generator, prior: np.ndarray[tuple[int], np.dtype[np.float64]]) -> int:
    """A class drawn from `prior`: `rng.choice(len(prior), p=prior)` without its checks, which cost more."""
    cumulative = prior.cumsum()
    cumulative /= cumulative[-1]
    return int(cumulative.searchsorted(rng.random(), side="right"))
