"""The worked example of an algorithm follows its equation; tests/test_worked_examples.py runs all examples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.rounds import Run
from flatlab.federated.world import World

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "algorithm.diff"


def test_the_worked_example_follows_its_equation(
    toy_world: Callable[..., World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = EXAMPLE.read_text().partition("+++ b/flatlab/federated/algorithms/fedyogi.py\n")[2].splitlines()
    code = "\n".join(line[1:] for line in added if line.startswith("+"))
    names: dict[str, Any] = {}
    exec(code, names)  # our own document
    monkeypatch.setitem(ALGORITHMS, "fedyogi", names["ALGORITHM"])
    hyper = {"beta_1": 0.5, "beta_2": 0.7, "tau": 0.05, "eta_g": 0.2}
    world = toy_world(algorithm="fedyogi", hyper=hyper, man=True)
    run = Run(world, tmp_path)
    m, v = torch.zeros_like(run.server.w), torch.full_like(run.server.w, 0.05**2)
    with SequentialEngine(world) as engine:
        for _ in range(3):
            before = run.server.w
            theta = run.advance(engine).theta
            m = 0.5 * m + 0.5 * (theta.mean(0) - before)
            square = (theta.mean(0) - before) ** 2
            v = torch.where(v > square, v - 0.3 * square, v + 0.3 * square)
            torch.testing.assert_close(run.server.w, before + 0.2 * m / (v**0.5 + 0.05))
