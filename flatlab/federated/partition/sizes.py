"""Clients of unequal sizes whose classes are those of the whole: skew of quantity alone."""

import numpy as np
from numpy.typing import NDArray

from flatlab.errors import UsageError
from flatlab.federated.partition.dirichlet import positive_delta
from flatlab.federated.partition.task import Indices, Task


def by_lognormal_sizes(task: Task) -> list[Indices]:
    """Deal out a shuffled whole in sizes proportional to exp(sigma z), z standard normal; sigma = 0: equal sizes.

    Raises:
        UsageError: `sigma` is negative or not finite.
    """
    sigma, rng = task.options.sigma, task.rng
    if sigma is None or not 0 <= sigma < float("inf"):
        raise UsageError(f"Log-normal sizes need a finite sigma of 0 or more, but sigma is {sigma}.")
    exponents = sigma * rng.standard_normal(task.clients)
    return _dealt(task, np.exp(exponents - exponents.max()), rng)


def by_dirichlet_sizes(task: Task) -> list[Indices]:
    """Deal out a shuffled whole in sizes proportional to one draw of Dir(delta, ..., delta) over the clients.

    Source: Li et al., "Federated Learning on Non-IID Data Silos: An Experimental Study" (2022), section 3.

    Raises:
        UsageError: `delta` is not a positive finite number.
    """
    delta, rng = positive_delta(task), task.rng
    return _dealt(task, rng.dirichlet(np.full(task.clients, delta)), rng)


def _dealt(task: Task, weights: NDArray[np.float64], rng: np.random.Generator) -> list[Indices]:
    """One sample for everyone, and the rest in proportion to `weights`, rounded by largest remainders."""
    rest = len(task.classes) - task.clients
    ideal = rest * (weights / weights.sum())
    sizes = np.floor(ideal).astype(np.int64)
    short = rest - int(sizes.sum())
    sizes[np.argsort(sizes - ideal, kind="stable")[:short]] += 1
    return np.split(rng.permutation(len(task.classes)), np.cumsum(sizes + 1)[:-1])
