"""The handwritten digits that come with scikit-learn."""

import numpy as np
import torch

from analysis.strata import stratified_choice
from flatlab.data.images import ImageData, Split

MEAN = (0.3054,)
STD = (0.3760,)
"""Of the 1438 training images, scaled to [0, 1]."""


def load() -> ImageData:
    """scikit-learn's 1797 digits of 8 x 8 pixels and 17 grey levels; every fifth of each class is for testing."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    for_testing = stratified_choice(labels.numpy(), len(labels) // 5, np.random.default_rng(0))
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    is_test[torch.from_numpy(for_testing)] = True
    train, test = (Split(images[chosen], labels[chosen]) for chosen in (~is_test, is_test))
    return ImageData("digits", train, test, 10, MEAN, STD, augment=False)
