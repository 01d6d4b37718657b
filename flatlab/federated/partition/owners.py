"""Clients that the data themselves know: writers, users, hospitals, or whatever a file of a split says."""

import numpy as np

from flatlab.errors import UsageError
from flatlab.federated.partition.task import Indices, Task


def by_owner(task: Task) -> list[Indices]:
    """Give every client the samples of one owner, in the order of the owners' numbers.

    Raises:
        UsageError: the data know of no owners, or of more or fewer than there are clients.
    """
    if task.owners is None:
        raise UsageError("The data do not say which client a sample belongs to: choose another split.")
    known, numbers = np.unique(task.owners, return_inverse=True)
    if len(known) != task.clients:
        raise UsageError(
            f"The training samples belong to {len(known)} clients, not {task.clients}: add --clients {len(known)}."
        )
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.cumsum(np.bincount(numbers))[:-1])
