"""Rows of fruit in CSV files, for tests."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HEADER = ("width", "length", "ripe", "farm", "fruit")


XY = ("x", "label")


def rows(count: int = 40, seed: int = 0) -> list[list[Any]]:
    rng = np.random.default_rng(seed)
    return [
        [
            float(rng.normal(5, 3)),
            int(rng.integers(1000)),
            k % 3 == 0,
            ["north", "south"][k % 2],
            ("fig", "plum")[k % 2],
        ]
        for k in range(count)
    ]


def write(file: Path, content: list[list[Any]], header: Sequence[str] = HEADER, delimiter: str = ",") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as lines:
        csv.writer(lines, delimiter=delimiter).writerows([header, *content])
    return file
