"""A node's share: the samples of its clients, in a file, with as much of the others' as every client must know.

What a client must know of the others is how many samples each has (wt_i, K); a share holds these numbers and nothing
else of them, so that no node can see what is not its own.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatlab.data import ImageData, Split
from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig
from flatlab.federated.parameters import layout_of
from flatlab.federated.trial import tried
from flatlab.federated.world import World, initial_model
from flatlab.files import atomic_write
from flatlab.runs.checkpoint import load_tensors
from flatlab.runs.contents import damaged, require_keys, require_tensor, require_text, require_version
from flatlab.runs.fingerprint import data_digest

FORMAT = "flatlab share"
VERSION = 1


@dataclass(frozen=True)
class Share:
    """What one node holds."""

    name: str  # of the node
    split: str  # digest of the data and of which client has which samples
    clients: tuple[int, ...]  # the node's, ascending
    sizes: tuple[int, ...]  # (N,), samples of every client
    images: Tensor  # (sum of the node's n_k, ...), client after client
    labels: Tensor  # (the same,) int64
    classes: int
    mean: tuple[float, ...]  # per channel, as of `ImageData`
    std: tuple[float, ...]
    augment: bool

    def world(self, config: RunConfig) -> World:
        """The world of a run as this node sees it, its model tried; client k of another node has only its length."""
        owned = Split(self.images, self.labels)
        data = ImageData(config.dataset, owned, owned, self.classes, self.mean, self.std, self.augment)
        parts = [np.broadcast_to(np.int64(0), (size,)) for size in self.sizes]
        start = 0
        for k in self.clients:
            parts[k] = np.arange(start, start + self.sizes[k])
            start += self.sizes[k]
        return tried(World(config, data, parts, layout_of(initial_model(config, data))))


def split_digest(world: World) -> str:
    """Digest of the data, and of which client has which of them; node and server compare it."""
    digest = hashlib.sha256(data_digest(world.data).encode())
    for part in world.parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:16]


def make_shares(world: World, nodes: int) -> list[Share]:
    """Deal the clients to `nodes` nodes in turn: node i has the clients k with k mod `nodes` = i.

    Raises `UsageError` where there are fewer clients than nodes.
    """
    if nodes > len(world.parts):
        raise UsageError(f"{nodes} nodes are more than the run's {len(world.parts)} clients: ask for fewer --workers.")
    data, split = world.data, split_digest(world)
    shares = []
    for node in range(nodes):
        clients = range(node, len(world.parts), nodes)
        index = torch.from_numpy(np.concatenate([world.parts[k] for k in clients]))
        shares.append(
            Share(
                name=f"node-{node}",
                split=split,
                clients=tuple(clients),
                sizes=tuple(len(part) for part in world.parts),
                images=data.train.images[index],
                labels=data.train.labels[index],
                classes=data.classes,
                mean=tuple(data.mean),
                std=tuple(data.std),
                augment=data.augment,
            )
        )
    return shares


def save_share(path: Path, share: Share) -> None:
    """Write `share` to `path`, atomically."""
    with atomic_write(path) as file:
        torch.save({"format": FORMAT, "version": VERSION, **vars(share)}, file)


def load_share(path: Path) -> Share:
    """Read a share; tensors and plain data only, no code. Raises `UsageError` for a file that is not one."""
    plain = load_tensors(path, f"a {FORMAT}", "Use a file that `flatlab train --save-shares` wrote.")
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise UsageError(f"{path} is not a {FORMAT}; use a file that `flatlab train --save-shares` wrote.")
    require_version(plain, path, VERSION)
    fields = tuple(Share.__dataclass_fields__)
    require_keys(plain, fields, path)
    share = Share(
        name=require_text(plain["name"], path, "name"),
        split=require_text(plain["split"], path, "split"),
        clients=_numbers(plain, "clients", path),
        sizes=_numbers(plain, "sizes", path),
        images=require_tensor(plain["images"], path, "images"),
        labels=require_tensor(plain["labels"], path, "labels"),
        classes=_numbers({"classes": (plain["classes"],)}, "classes", path)[0],
        mean=_reals(plain, "mean", path),
        std=_reals(plain, "std", path),
        augment=bool(plain["augment"]),
    )
    if not share.clients or max(share.clients) >= len(share.sizes):
        raise damaged(path, "clients", "names no client, or one that is not there")
    samples = sum(share.sizes[k] for k in share.clients)
    if share.labels.shape != (samples,) or share.labels.dtype != torch.int64 or len(share.images) != samples:
        raise damaged(path, "labels", f"are not those of the {samples} samples")
    if samples and not 0 <= int(share.labels.min()) <= int(share.labels.max()) < share.classes:
        raise damaged(path, "labels", f"are not all in 0..{share.classes - 1}")
    return share


def save_shares(folder: Path, world: World, nodes: int) -> list[Path]:
    """Write the shares of `nodes` nodes into `folder`, and return their files."""
    paths = []
    for share in make_shares(world, nodes):
        paths.append(folder / f"{share.name}.pt")
        save_share(paths[-1], share)
    return paths


def _numbers(plain: Mapping[str, Any], field: str, path: Path) -> tuple[int, ...]:
    values = plain[field]
    if not isinstance(values, tuple | list) or not all(type(value) is int and value >= 0 for value in values):
        raise damaged(path, field, "is no list of whole numbers")
    return tuple(values)


def _reals(plain: Mapping[str, Any], field: str, path: Path) -> tuple[float, ...]:
    values = plain[field]
    if not isinstance(values, tuple | list) or not all(type(value) is float for value in values):
        raise damaged(path, field, "is no list of numbers")
    return tuple(values)
