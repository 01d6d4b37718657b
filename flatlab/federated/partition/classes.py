"""Clients that hold a few classes only: the "pathological" splits."""

import numpy as np

from flatlab.errors import UsageError
from flatlab.federated.partition.task import Indices, Task


def by_classes(task: Task) -> list[Indices]:
    """Give every client exactly `classes_per_client` classes; those who share a class have equal parts of it.

    One client after the other takes the classes that nobody has yet, then those of which most would be left for one
    more, ties at random; so sizes are as equal as the classes allow. `flwr_datasets`' PathologicalPartitioner draws
    classes without regard to those that are taken, which may leave some to nobody.

    Raises:
        UsageError: there are not as many classes, or too few clients to hold all of them, or too many for their sizes.
    """
    each, rng = _whole(task.options.classes_per_client, "classes_per_client"), task.rng
    sizes = np.bincount(task.classes)
    if each > len(sizes):
        raise UsageError(f"A client cannot hold {each} of {len(sizes)} classes: ask for 1 to {len(sizes)} per client.")
    if each * task.clients < len(sizes):
        raise UsageError(
            f"{task.clients} clients of {each} classes each leave some of the {len(sizes)} classes to nobody: "
            f"ask for {-(-len(sizes) // task.clients)} classes per client or more."
        )
    sharers: list[list[int]] = [[] for _ in sizes]
    used = np.zeros_like(sizes)
    for client in range(task.clients):
        share = np.where(used == 0, np.inf, sizes / (used + 1))
        order = np.lexsort((rng.random(len(sizes)), -share))
        for label in order[:each]:
            if used[label] == sizes[label]:
                raise UsageError(
                    f"{task.clients} clients of {each} classes each need more samples than some classes have: "
                    "ask for fewer clients or classes per client."
                )
            sharers[label].append(client)
            used[label] += 1
    held: list[list[Indices]] = [[] for _ in range(task.clients)]
    for label, clients in enumerate(sharers):
        pool = rng.permutation(np.flatnonzero(task.classes == label))
        # Turned round at random, so that the parts that are larger by one do not all go to the first clients.
        for client, part in zip(rng.permutation(clients), np.array_split(pool, len(clients)), strict=True):
            held[client].append(part)
    return [np.concatenate(parts) for parts in held]


def by_shards(task: Task) -> list[Indices]:
    """Sort the samples by class, cut them into equal shards, and deal `shards_per_client` to each client at random.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017), whose
    clients have two. Shards differ by one sample at most.

    Raises:
        UsageError: there are fewer samples than shards.
    """
    each, rng = _whole(task.options.shards_per_client, "shards_per_client"), task.rng
    count = each * task.clients
    if count > len(task.classes):
        raise UsageError(
            f"{len(task.classes)} training samples are too few for {each} shards for each of {task.clients} clients: "
            "ask for fewer."
        )
    shuffled = rng.permutation(len(task.classes))
    shards = np.array_split(shuffled[np.argsort(task.classes[shuffled], kind="stable")], count)
    dealt = rng.permutation(count).reshape(task.clients, each)
    return [np.concatenate([shards[shard] for shard in hand]) for hand in dealt]


def _whole(value: float | None, name: str) -> int:
    if value is None or value < 1 or value != int(value):
        raise UsageError(f"{name} must be a whole number, at least 1, but is {value}.")
    return int(value)
