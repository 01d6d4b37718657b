"""Two small runs on digits, the command line on them, and what is true of them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flatlab.cli.main import main
from flatlab.cli.watched_run import train_run
from flatlab.federated.config import make_config
from flatlab.federated.execution import Execution
from flatlab.federated.world import World, make_world
from flatlab.runs.checkpoint import load_checkpoint
from tests.flatlab.dense_mlp import Dense, Run, dense

RUN = {"rounds": 2, "clients": 4, "local_epochs": 1, "hidden": (5,), "train_samples": 200, "lr": 0.3}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run without MAN and one with it."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {"plain": make_config(RUN), "man": make_config(RUN | {"man": True, "zeta": 0.3})}
    one, two = (train_run(config, folder / name, Execution(workers=1)) for name, config in configs.items())
    return one, two


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process, in an empty folder; returns what --json holds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")

    def go(*words: object, code: int = 0) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["flatlab", *map(str, words), "--json", "out.json"])
        with pytest.raises(SystemExit) as left:
            main()
        assert (left.value.code or 0) == code, words
        result: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
        return result

    return go


@pytest.fixture(scope="module")
def world(checkpoints: tuple[Path, Path]) -> World:
    return make_world(load_checkpoint(checkpoints[0]).config)


@pytest.fixture(scope="module")
def truth(checkpoints: tuple[Path, Path], world: World) -> Dense:
    return dense(checkpoints[0], world, slice(None))
