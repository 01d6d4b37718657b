"""Data sets that are known by name: where the Hugging Face hub has them, and how they are normalised."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownData:
    """What need not be asked of, or measured on, a data set."""

    hub: str  # organisation/name on the Hugging Face hub
    label: str  # column of the labels
    mean: tuple[float, ...]  # per channel, of images scaled to [0, 1]
    std: tuple[float, ...]  # the same
    augment: bool  # whether the paper's training flips and crops the images


KNOWN = {
    "cifar10": KnownData("uoft-cs/cifar10", "label", (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), True),
    "cifar100": KnownData("uoft-cs/cifar100", "fine_label", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), True),
    "tiny-imagenet": KnownData("zh-plus/tiny-imagenet", "label", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), True),
    "fashion-mnist": KnownData("zalando-datasets/fashion_mnist", "label", (0.2860,), (0.3530,), False),
}
"""By the name that the command line takes. The label column is the hub's; mean and std are the published ones."""
