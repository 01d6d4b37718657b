"""Dividing a training set among clients. A new way is one module with a function of `Task`, and one line in `KINDS`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flatlab.errors import UsageError
from flatlab.federated.partition.classes import by_classes, by_shards
from flatlab.federated.partition.dirichlet import by_dirichlet
from flatlab.federated.partition.iid import evenly
from flatlab.federated.partition.owners import by_owner
from flatlab.federated.partition.sizes import by_dirichlet_sizes, by_lognormal_sizes
from flatlab.federated.partition.task import Indices, Options, Task

__all__ = ["KINDS", "Indices", "Kind", "Options", "class_counts", "split_clients"]


@dataclass(frozen=True)
class Kind:
    """One way to divide a training set."""

    divide: Callable[[Task], list[Indices]]
    parameter: str | None  # the field of `Options` and of a run that it reads
    summary: str


KINDS = {
    "iid": Kind(evenly, None, "as many samples of every class for everyone"),
    "dirichlet": Kind(by_dirichlet, "delta", "equal sizes, a class distribution of each client's own, Dir(delta)"),
    "classes": Kind(by_classes, "classes_per_client", "a few classes for every client"),
    "shards": Kind(by_shards, "shards_per_client", "a few pieces of the set sorted by class for every client"),
    "lognormal-sizes": Kind(by_lognormal_sizes, "sigma", "unequal sizes, log-normal; classes as in the whole"),
    "dirichlet-sizes": Kind(by_dirichlet_sizes, "delta", "unequal sizes, Dir(delta); classes as in the whole"),
    "column": Kind(by_owner, "partition_column", "one client per value of a column: writers, natural users"),
    "file": Kind(by_owner, "partition_file", "as a JSON file says"),
}
"""By the name that a run's `partition` takes."""


def split_clients(
    labels: NDArray[np.integer] | Tensor,
    clients: int,
    *,
    rule: str,
    seed: int,
    owners: NDArray[np.integer] | Tensor | None = None,
    **options: float | None,
) -> list[Indices]:
    """Assign every sample to one client; no client is left without.

    Args:
        labels: (n,) class of each sample.
        clients: number of clients, 1..n.
        rule: a name in `KINDS`; see the function that stands there.
        seed: the split is a function of the arguments alone.
        owners: (n,) the client of each sample as the data know it, for "column" and "file".
        options: fields of `Options`, of which the rule reads its own.

    Returns:
        `clients` arrays of indices into `labels`, each sorted, disjoint, together 0..n-1.

    Raises:
        UsageError: an argument outside its range, or more clients than samples.
    """
    classes = np.unique(np.asarray(labels), return_inverse=True)[1]
    if clients < 1:
        raise UsageError(f"The number of clients must be at least 1, but is {clients}.")
    if clients > len(classes):
        raise UsageError(
            f"{clients} clients cannot share {len(classes)} training samples, for some would have none: "
            f"ask for at most {len(classes)} clients, or for more samples."
        )
    if rule not in KINDS:
        raise UsageError(f"The split must be {', '.join([*KINDS][:-1])} or {[*KINDS][-1]}, not '{rule}'.")
    task = Task(classes, clients, seed, Options(**options), None if owners is None else np.asarray(owners))
    return [np.sort(part).astype(np.int64) for part in KINDS[rule].divide(task)]


def class_counts(labels: NDArray[np.integer] | Tensor, parts: Sequence[Indices], classes: int) -> Indices:
    """Count the samples of each class that each client has; shape (clients, classes)."""
    labels = np.asarray(labels)
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts])
