"""The even split."""

import numpy as np

from flatlab.federated.partition.task import Indices, Task


def evenly(task: Task) -> list[Indices]:
    """Where `clients` divides the size of every class (CIFAR-100: 500 by 100), each client gets as many of each class.

    Otherwise equal slices of a shuffled whole, whose sizes differ by one at most.
    """
    shuffled = task.rng.permutation(len(task.classes))
    if (np.bincount(task.classes) % task.clients == 0).all():
        # Sorted by class, the shuffled samples are dealt out like cards: each class goes round a whole number of times.
        by_class = shuffled[np.argsort(task.classes[shuffled], kind="stable")]
        return [by_class[client :: task.clients] for client in range(task.clients)]
    return np.array_split(shuffled, task.clients)
