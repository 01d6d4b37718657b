"""Dividing a training set among clients: evenly, or with a label distribution of its own for every client."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flatlab.errors import UsageError

Rule = Literal["iid", "dirichlet"]
Indices = NDArray[np.int64]

SMALLEST_PRIOR = 1e-300
"""Least class probability of a Dirichlet client; it only matters once every likelier class has run out."""


def split_clients(
    labels: NDArray[np.integer] | Tensor, clients: int, *, rule: Rule, delta: float | None, seed: int
) -> list[Indices]:
    """Assign every sample to one client.

    "iid": where `clients` divides the size of every class (CIFAR-100: 500 by 100), each client gets the same number of
    each class; otherwise equal slices of a shuffled whole.

    "dirichlet": every client has the same number of samples and a class prior of its own, p_k ~ Dir(delta, ..., delta).
    One sample at a time, a random client with room draws a class from p_k and takes a sample of it; a class that has
    run out leaves every prior, which is then normalised again. Small `delta` makes clients of few classes, large
    `delta` approaches iid. Source: Acar et al., "Federated Learning Based on Dynamic Regularization" (2021).

    Args:
        labels: (n,) class of each sample.
        clients: number of clients, 1..n. Sizes differ by one at most, where `clients` does not divide n.
        rule: which of the two.
        delta: concentration of the Dirichlet distribution, positive; ignored for "iid".
        seed: the split is a function of the arguments alone.

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
    if rule == "iid":
        parts = _iid(classes, clients, np.random.default_rng(seed))
    elif rule == "dirichlet":
        if delta is None or not 0 < delta < float("inf"):
            raise UsageError(f"The Dirichlet split needs a positive finite delta, but delta is {delta}.")
        parts = _dirichlet(classes, clients, delta, seed)
    else:
        raise UsageError(f"The split must be iid or dirichlet, not '{rule}'.")
    return [np.sort(part).astype(np.int64) for part in parts]


def class_counts(labels: NDArray[np.integer] | Tensor, parts: Sequence[Indices], classes: int) -> Indices:
    """Count the samples of each class that each client has; shape (clients, classes)."""
    labels = np.asarray(labels)
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts])


def _iid(classes: Indices, clients: int, rng: np.random.Generator) -> list[Indices]:
    shuffled = rng.permutation(len(classes))
    if (np.bincount(classes) % clients == 0).all():
        # Sorted by class, the shuffled samples are dealt out like cards: each class goes round a whole number of times.
        by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
        return [by_class[client::clients] for client in range(clients)]
    return np.array_split(shuffled, clients)


def _dirichlet(classes: Indices, clients: int, delta: float, seed: int) -> list[Indices]:
    """Split by `flwr_datasets`' InnerDirichletPartitioner, which draws as `split_clients` describes.

    As it stands, it fails at small delta: a prior holds exact zeros there, so once its few classes have run out nothing
    is left to normalise (10 classes, 20 clients, delta 0.01: 11 of 20 seeds). A floor under the priors it draws, far
    below any probability that is ever chosen, keeps it going and changes no split that it completes by itself.
    """
    from datasets import Dataset
    from flwr_datasets.partitioner import InnerDirichletPartitioner

    class FlooredDirichlet(np.random.Generator):
        def dirichlet(self, alpha: Any, size: Any = None) -> NDArray[np.float64]:
            return np.maximum(super().dirichlet(alpha, size), SMALLEST_PRIOR)

    sizes = [len(part) for part in np.array_split(classes, clients)]
    partitioner = InnerDirichletPartitioner(sizes, partition_by="class", alpha=float(delta), shuffle=False, seed=seed)
    partitioner._rng = FlooredDirichlet(np.random.PCG64(seed))
    partitioner.dataset = Dataset.from_dict({"class": classes, "sample": np.arange(len(classes))})
    return [np.asarray(partitioner.load_partition(client)["sample"]) for client in range(clients)]
