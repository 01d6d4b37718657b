"""Images in Parquet files, for tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHADES = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17


def random_images(n: int, shape: tuple[int, ...] = (6, 5, 3), seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


def write_parquet(
    file: Path, pixels: Sequence[np.ndarray], labels: Sequence[Any], classes: int | None = 3, label: str = "label"
) -> None:
    """Write images losslessly; with `classes` None the label is a plain column."""
    import datasets

    types: dict[str, Any] = {"picture": datasets.Image()}
    if classes is not None:
        types[label] = datasets.ClassLabel(names=[f"class {c}" for c in range(classes)])
    table = datasets.Dataset.from_dict({"picture": [Image.fromarray(p) for p in pixels], label: list(labels)})
    for column, feature in types.items():
        table = table.cast_column(column, feature)
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(str(file))
