"""Images in memory: subsets that keep the classes' shares, normalisation, and the real data sets as they come."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.strata import stratified_choice
from flatlab.data import ImageData, Split, load_images, normalise
from flatlab.data.images import channel_statistics
from flatlab.errors import UsageError


def labelled(class_sizes: list[int]) -> Split:
    labels = torch.repeat_interleave(torch.arange(len(class_sizes)), torch.tensor(class_sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    return Split(torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1), labels)


@given(
    class_sizes=st.lists(st.integers(0, 25), min_size=1, max_size=8).filter(sum),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_stratified_choice_keeps_every_class_in_its_share(class_sizes: list[int], fraction: float, seed: int) -> None:
    labels = labelled(class_sizes).labels.numpy()
    count = max(1, round(fraction * len(labels)))
    chosen = stratified_choice(labels, count, np.random.default_rng(seed))
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, stratified_choice(labels, count, np.random.default_rng(seed)))
    share = np.array(class_sizes) * count / len(labels)
    assert (np.abs(np.bincount(labels[chosen], minlength=len(class_sizes)) - share) < 1).all()


def test_subsets() -> None:
    data = ImageData("made up", labelled([20, 20, 40]), labelled([10, 30]), 3, (0.5,), (0.5,), False)
    part = data.subset(8, None, seed=1)
    assert part.train.labels.bincount().tolist() == [2, 2, 4]
    assert part.test is data.test
    for image, label in zip(part.train.images.flatten().tolist(), part.train.labels, strict=True):
        assert data.train.labels[image] == label
    assert torch.equal(part.train.images, data.subset(8, 5, seed=1).train.images)
    assert not torch.equal(part.train.images, data.subset(8, None, seed=2).train.images)


@pytest.mark.parametrize(("train", "test"), [(0, None), (81, None), (None, 41), (None, -1)])
def test_impossible_subsets(train: int | None, test: int | None) -> None:
    data = ImageData("made up", labelled([20, 20, 40]), labelled([10, 30]), 3, (0.5,), (0.5,), False)
    which, have, asked = ("training", 80, train) if train is not None else ("test", 40, test)
    with pytest.raises(UsageError, match=f"made up has {have} {which} images: ask for 1 to {have}, not {asked}"):
        data.subset(train, test, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalise_is_its_equation(dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    result = normalise(images, mean, std, dtype)
    assert result.dtype == dtype
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(result[:, channel], expected.to(dtype), atol=tolerance, rtol=0)


def test_a_channel_that_does_not_vary_becomes_zero() -> None:
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    images[:, 2] = 7
    mean, std = channel_statistics(images.numpy())
    result = normalise(images, mean, std)
    assert result.isfinite().all()
    assert result[:, 2].eq(0).all()
    assert result[:, :2].std(dim=(0, 2, 3), correction=0) == pytest.approx(1)


@pytest.mark.long
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "classes", "input_shape", "train_each", "test_each"),
    [
        ("cifar10", 10, (3, 32, 32), 5000, 1000),
        ("cifar100", 100, (3, 32, 32), 500, 100),
        ("tiny-imagenet", 200, (3, 64, 64), 100, 25),
    ],
)
def test_real_data(
    shared_datasets: Path,
    image_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    classes: int,
    input_shape: tuple[int, int, int],
    train_each: int,
    test_each: int,
) -> None:
    monkeypatch.setenv("FLATLAB_CACHE", str(image_cache))
    data = load_images(name, root=shared_datasets)
    assert (data.classes, data.input_shape, data.augment) == (classes, input_shape, True)
    assert data.train.labels.bincount().tolist() == [train_each] * classes
    assert data.test.labels.bincount().tolist() == [test_each] * classes
    some = normalise(data.train.images[::20], data.mean, data.std)
    assert some.mean((0, 2, 3)).abs().max() < 0.2
    assert (some.std((0, 2, 3)) - 1).abs().max() < 0.25
