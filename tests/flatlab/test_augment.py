import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from flatlab.federated.augment import Draws, augment, draw


def augmented_one_by_one(images: Tensor, draws: Draws) -> Tensor:
    """The same, as one would write it for a single image."""
    results = []
    for image, flip, y, x in zip(images, draws.flip, draws.shift_y.tolist(), draws.shift_x.tolist(), strict=True):
        if flip:
            image = image.flip(2)
        padded = F.pad(image, (4, 4, 4, 4))
        results.append(padded[:, 4 + y : 4 + y + image.shape[1], 4 + x : 4 + x + image.shape[2]])
    return torch.stack(results)


@given(
    n=st.integers(1, 20),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_the_slow_form(n: int, channels: int, height: int, width: int, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, channels, height, width, generator=generator, dtype=dtype)
    draws = draw(n, generator)
    assert torch.equal(augment(images, draws), augmented_one_by_one(images, draws))


def test_works_on_channels_last_images() -> None:
    images = torch.randn(8, 3, 10, 10).to(memory_format=torch.channels_last)
    draws = draw(8, torch.Generator().manual_seed(0))
    assert torch.equal(augment(images, draws), augmented_one_by_one(images, draws))


def test_draws_follow_the_stated_distribution() -> None:
    n = 90_000
    draws = draw(n, torch.Generator().manual_seed(1))
    assert abs(draws.flip.double().mean() - 0.5) < 0.01
    # Half are not cropped; of the other half, 1 of 81 is cropped where it already is.
    still = (draws.shift_y == 0) & (draws.shift_x == 0)
    assert abs(still.double().mean() - (0.5 + 0.5 / 81)) < 0.01
    for shift in (draws.shift_y, draws.shift_x):
        moved = shift[~still]
        assert moved.unique().tolist() == [-4, -3, -2, -1, 0, 1, 2, 3, 4]
        share = (shift[shift != 0] + 4).bincount(minlength=9).double() / n
        torch.testing.assert_close(share[share > 0], torch.full((8,), 0.5 / 9).double(), atol=4e-3, rtol=0)
    flips_among_cropped = draws.flip[~still].double().mean()
    assert abs(flips_among_cropped - 0.5) < 0.01


def test_draws_come_from_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = draw(50, torch.Generator().manual_seed(7))
    torch.manual_seed(2)
    second = draw(50, torch.Generator().manual_seed(7))
    for name in ("flip", "shift_y", "shift_x"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_images_are_left_as_they_were() -> None:
    images = torch.randn(5, 3, 8, 8)
    before = images.clone()
    augment(images, draw(5, torch.Generator().manual_seed(0)))
    assert torch.equal(images, before)
