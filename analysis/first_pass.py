"""Whether later passes meet the same samples as the first, in whatever order and batches they come."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.batches import Batch, batch_length, tensors
from analysis.errors import MeasurementError
from analysis.noise import mixed

_MULTIPLIER = -7046029254386353131  # 2^64 / golden ratio as a signed integer: splitmix64's increment
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def fingerprint(batch: Batch) -> int:
    """A 64-bit number that samples in another order have too, and other samples have not but by chance (2^-64)."""
    hashed = torch.zeros(batch_length(batch), dtype=torch.int64, device=batch[1].device)
    for tensor in tensors(batch):
        hashed = mixed(hashed * _MULTIPLIER + _sums(tensor.detach()).to(hashed.device))
    return int(hashed.sum())


def _sums(x: Tensor) -> Tensor:
    """Every sample's bits as words, each times a weight of its place, added up modulo 2^64: (n, ...) -> (n,)."""
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    words = (x.flatten(1) if x.dim() > 1 else x.reshape(-1, 1)).contiguous().view(_WORDS[x.element_size()]).long()
    places = torch.arange(1, words.shape[1] + 1, device=x.device)
    return (words * (mixed(places * _MULTIPLIER) | 1)).sum(1)


@dataclass
class FirstPass:
    """What the first whole pass over some data met, shared by all that read them."""

    total: int | None = None

    def compare(self, fingerprints: Iterable[int]) -> None:
        """Raise `MeasurementError` unless a whole pass met the same samples as the first one."""
        total = sum(fingerprints) % (1 << 64)
        if self.total is not None and total != self.total:
            raise MeasurementError("The data changed between two passes: switch shuffling and augmentation off.")
        self.total = total
