"""How far each client's samples are from the whole, in classes and in number."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Heterogeneity:
    """Distances between each client's class distribution p_k and that of the whole, p."""

    sizes: NDArray[np.int64]  # (K,) samples n_k
    total_variation: Numbers  # (K,) sum_c |p_k(c) - p(c)| / 2, in [0, 1]
    jensen_shannon: Numbers  # (K,) divergence of p_k and p in bits, in [0, 1]

    def mean(self, distances: Numbers) -> float:
        """The mean over clients, each weighted by its samples."""
        return float(distances @ self.sizes / self.sizes.sum())

    @property
    def size_variation(self) -> float:
        """Standard deviation of the sizes as a share of their mean."""
        return float(self.sizes.std() / self.sizes.mean())


def heterogeneity(counts: NDArray[np.int64]) -> Heterogeneity:
    """Measure a split of which client k has `counts[k, c]` samples of class c; (K, C), no row of zeros.

    Source of the divergence: Lin, "Divergence measures based on the Shannon entropy" (1991).
    """
    sizes = counts.sum(axis=1)
    own = counts / sizes[:, None]
    whole = counts.sum(axis=0) / counts.sum()
    middle = (own + whole) / 2
    divergence = _entropy(middle) - (_entropy(own) + _entropy(whole)) / 2
    return Heterogeneity(sizes, np.abs(own - whole).sum(axis=1) / 2, np.clip(divergence, 0, 1))


def _entropy(shares: Numbers) -> Numbers:
    """In bits, over the last axis; 0 log 0 = 0."""
    logarithms = np.log2(shares, where=shares > 0, out=np.zeros_like(shares))
    return np.asarray(-(shares * logarithms).sum(axis=-1))
