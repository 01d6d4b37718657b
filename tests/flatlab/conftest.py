import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flatlab.data import ImageData, Split
from flatlab.federated.config import RunConfig
from flatlab.federated.own_algorithm import _own
from flatlab.federated.parameters import layout_of
from flatlab.federated.world import World, initial_model
from flatlab.functions import _ALLOWED
from tests.flatlab.hub_cache import HubCache

MakeWorld = Callable[..., World]


@pytest.fixture
def toy_world() -> MakeWorld:
    """A function that makes a world of random images on clients of unequal sizes, in float64."""

    def make(
        sizes: tuple[int, ...] = (3, 5, 8, 4, 11, 7),
        shape: tuple[int, int, int] = (1, 3, 4),
        augment: bool = False,
        **fields: Any,
    ) -> World:
        generator = torch.Generator().manual_seed(5)
        n = sum(sizes)

        def split(n: int) -> Split:
            images = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
            return Split(images, torch.randint(0, 4, (n,), generator=generator))

        data = ImageData(
            "toy", split(n), split(17), classes=4, mean=(0.4,) * shape[0], std=(0.3,) * shape[0], augment=augment
        )
        config = RunConfig.model_validate(
            {
                "model": "mlp",
                "hidden": (6, 5),
                "clients": len(sizes),
                "participation": 0.5,
                "rounds": 5,
                "local_epochs": 2,
                "batch_size": 4,
                "lr": 0.2,
                "lr_decay": 0.9,
                "weight_decay": 0.01,
                "dtype": "float64",
                "seed": 3,
                **fields,
            }
        )
        order = np.random.default_rng(0).permutation(n)
        parts = np.split(order, np.cumsum(sizes)[:-1])
        return World(config, data, list(parts), layout_of(initial_model(config, data)))

    return make


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which modules are imported, where no other test's are known, and forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    _forget()
    before = set(_ALLOWED)
    yield tmp_path
    _ALLOWED.intersection_update(before)
    _forget()


def _forget() -> None:
    _own.cache_clear()
    for name in ("anchor", "mine"):
        sys.modules.pop(name, None)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    """The hub's data sets that a test puts there, without a hub."""
    return HubCache(tmp_path / "hub", monkeypatch)
