"""The samples of a loss: all of a data set in bounded memory, some of it, or one process's share."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.batches import Batch, Inspected, Part, batch_length, picked
from analysis.first_pass import fingerprint
from flatlab.data import ImageData, normalise
from flatlab.measuring.ranks import rank, ranks, require_alike, spread, summed_over_ranks
from flatlab.runs.fingerprint import DIGITS

BATCH_BYTES = 64 << 20
"""Normalised pixels that exist at once."""


class ImageBatches:
    """Training images normalised a batch at a time, anew at each pass, so that their pixels never exist all at once."""

    def __init__(self, data: ImageData, chosen: NDArray[np.int64], dtype: torch.dtype, device: str) -> None:
        self.data = data
        self.chosen = torch.from_numpy(chosen)
        self.dtype = dtype
        self.device = device
        self.batch_size = max(1, BATCH_BYTES // (data.train.images[0].numel() * dtype.itemsize))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        train, mean, std = self.data.train, self.data.mean, self.data.std
        for places in self.chosen.split(self.batch_size):
            images = train.images[places].to(self.device)
            yield normalise(images, mean, std, dtype=self.dtype), train.labels[places]


def choice_digest(data: ImageData, chosen: NDArray[np.int64], parts: Mapping[str, NDArray[np.int64]]) -> str:
    """Which samples a loss is of, in any order, and which of them each client has."""
    digest, places = hashlib.sha256(), np.sort(chosen)
    for some in torch.from_numpy(places).split(_HASHED):
        digest.update(data.train.images[some].contiguous().numpy().data)
        digest.update(data.train.labels[some].contiguous().numpy().data)
    for part in parts.values():
        digest.update(np.packbits(np.isin(places, part)).data)
    return digest.hexdigest()[:DIGITS]


_HASHED = 1024
"""Samples that are looked at together."""


def own_share(data: ImageData, chosen: NDArray[np.int64], dtype: torch.dtype, device: str) -> ImageBatches:
    """The images `chosen`, of which each process takes every `ranks()`-th, or all where they are fewer (`spread`)."""
    mine = chosen[rank() :: ranks()] if spread(len(chosen)) is True else chosen
    return ImageBatches(data, mine, dtype, device)


def shared_out(batches: Iterable[Batch], samples: int) -> Iterable[Batch]:
    """This process's share of any data."""
    return Part(batches, rank(), ranks()) if spread(samples) is True else batches


def require_shares(batches: Iterable[Batch], share: Iterable[Batch], name: str) -> None:
    """Raise `UsageError` unless the processes' shares are together what each of them takes for all of the data."""
    whole, own = (sum(map(fingerprint, part)) for part in (batches, share))
    right = (summed_over_ranks(own) - whole) % 2**64 == 0
    require_alike(
        "" if right else f"{rank()}",
        f"The data of {name} are other ones, or in another order, in each pass or process: switch shuffling and "
        "augmentation off, and let the function draw from a fixed seed.",
    )


def some_of(inspected: Inspected, count: int, seed: int = 0) -> Sequence[Batch]:
    """`count` of the samples, drawn from `seed`, in their own order and batches."""
    kept = np.zeros(inspected.samples, dtype=bool)
    kept[np.random.default_rng(seed).choice(inspected.samples, count, replace=False)] = True
    found: list[Batch] = []
    passed = 0
    for batch in inspected.batches:
        places = torch.from_numpy(np.flatnonzero(kept[passed : passed + batch_length(batch)])).to(batch[1].device)
        passed += batch_length(batch)
        found.append(picked(batch, places))
    return [batch for batch in found if batch_length(batch) > 0]
