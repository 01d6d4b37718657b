"""Choosing some of labelled samples so that every class keeps its share."""

import numpy as np
from numpy.typing import NDArray


def stratified_choice(labels: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose `count` of the samples so that every class keeps its share, to within one sample.

    What rounding leaves over goes to the classes with the largest remainders, equal ones at random.

    Returns:
        (count,) indices into `labels`, ascending.
    """
    class_sizes = np.bincount(labels)
    shares = class_sizes * count / len(labels)
    chosen_sizes = np.floor(shares).astype(int)
    by_remainder = np.lexsort((rng.random(len(shares)), chosen_sizes - shares))
    chosen_sizes[by_remainder[: count - chosen_sizes.sum()]] += 1
    members = [np.flatnonzero(labels == c) for c in range(len(class_sizes))]
    return np.sort(np.concatenate([rng.permutation(m)[:k] for m, k in zip(members, chosen_sizes, strict=True)]))
