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
    added = EXAMPLE.read_text().partition("+++ b/flatlab/federated/algorithms/fedavgm.py\n")[2].splitlines()
    code = "\n".join(line[1:] for line in added if line.startswith("+"))
    names: dict[str, Any] = {}
    exec(code, names)  # our own document
    monkeypatch.setitem(ALGORITHMS, "fedavgm", names["ALGORITHM"])
    world = toy_world(algorithm="fedavgm", hyper={"beta": 0.5}, man=True)
    run = Run(world, tmp_path)
    m = torch.zeros_like(run.server.w)
    with SequentialEngine(world) as engine:
        for _ in range(3):
            before = run.server.w
            run.advance(engine)
            m = 0.5 * m + before - run.server.selected
            torch.testing.assert_close(run.server.w, before - m)
