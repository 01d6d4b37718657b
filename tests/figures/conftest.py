"""A folder of results with made-up numbers, in the form that training and measuring leave it."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatlab.cli.main import main
from flatlab.federated.config import RunConfig, make_config
from flatlab.federated.config_file import read_config, write_config
from flatlab.grid.plan import Cell, grid_cells, parse_grid
from flatlab.runs.checkpoint import Checkpoint, save_checkpoint

GRID = """
title = "Made-up <numbers> & more"
preset = "cifar100"
target_accuracy = 0.5
target_note = "Half."
[common]
rounds = 20
model = "cifar-cnn"
[axes]
algorithms = ["fedavg", "fedsam"]
partitions = ["dirichlet-0.3", "iid"]
seeds = [0, 1, 2]
[sensitivity]
zetas = [0.0, 0.05, 0.15, 0.5]
"""

LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")
VERSIONS = {"flatlab": "0.1.0", "torch": "2.13.0", "numpy": "2.0", "commit": "0123456789abcdef", "platform": "Linux"}


def accuracy_of(cell: Cell, t: int) -> float:
    """With MAN 0.06 higher at the end, and seeds 0.01 apart."""
    best = 0.48 + 0.06 * cell.config.man + 0.01 * cell.config.seed + 0.02 * (cell.config.algorithm == "fedsam")
    return float(round(best * (1 - np.exp(-t / 5)) / (1 - np.exp(-4)), 6))


def eigenvalue_of(cell: Cell) -> float:
    return (30.0 if cell.config.man else 50.0) + cell.config.seed * (1 + cell.config.man)


@pytest.fixture(scope="session")
def flatlab() -> Callable[..., int]:
    """The command line, run in this process; gives the exit code."""

    def run(*words: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["flatlab", *words])
            patch.setenv("COLUMNS", "150")
            with pytest.raises(SystemExit) as left:
                main()
        return int(left.value.code or 0)

    return run


@pytest.fixture
def results(finished: Path, tmp_path: Path) -> Path:
    """All cells of GRID, finished; a copy that the test may change."""
    return shutil.copytree(finished, tmp_path / "results")


@pytest.fixture
def change() -> Callable[..., None]:
    """Let the run in a folder be one of another configuration, or on `data` of another digest."""

    def change(run: Path, data: str = "", **fields: Any) -> None:
        config = make_config(read_config(run / "config.toml"), "test").model_copy(update=fields)
        write_config(run / "config.toml", config)
        write_final(run, config, data)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-config.rounds :]
        numbered = [record | {"round": t} for t, record in enumerate(lines, start=1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in numbered))
        for path in run.glob("*.json"):
            content = json.loads(path.read_text())
            content.get("run", content)["config"] = config.plain()
            _write_json(path, content)

    return change


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cells of GRID, finished; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "grid.toml").write_text(GRID)
    for cell in grid_cells(parse_grid(GRID, "made-up")):
        _write_cell(cell, folder / cell.name)
    return folder


def _write_cell(cell: Cell, folder: Path) -> None:
    folder.mkdir()
    write_config(folder / "config.toml", cell.config)
    records = [
        {"round": t, "train_loss": 1.0, **({"test_accuracy": accuracy_of(cell, t)} if t % 5 == 0 else {})}
        for t in range(1, cell.config.rounds + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_final(folder, cell.config)
    measured = {"eigs": _eigs(cell, 20), "trace": _trace(cell), "density": _density(cell)}
    measured |= {"surface": _surface(cell), "split": _split(cell)}
    for kind in cell.kinds:
        if kind == "training":
            _write_json(folder / "round-0010.eigs.json", _eigs(cell, 10))
        else:
            _write_json(folder / f"final.{kind}.json", measured[kind])


def write_final(folder: Path, config: RunConfig, data: str = "") -> None:
    """The checkpoint of the last round, but for its tensors; `data` is the digest of what it was trained on."""
    save_checkpoint(folder / "final.pt", Checkpoint(config, config.rounds, {}, {}, {}, {}, data))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


def _header(cell: Cell, t: int) -> dict[str, Any]:
    return {
        "data": {"dataset": "cifar100", "split": "train", "samples": 500},
        "versions": VERSIONS,
        "run": {"config": cell.config.plain(), "round": t, "metrics": {}},
    }


def _eigs(cell: Cell, t: int) -> dict[str, Any]:
    def pair(value: float) -> list[dict[str, Any]]:
        return [{"value": value, "residual": 0.01, "converged": True}]

    top = eigenvalue_of(cell) * t / 20
    layers = [
        {
            "name": name,
            "parameters": 10,
            "eigenvalues": pair(top / (2 + place)),
            "input_norm2": (20.0 if cell.config.man else 80.0) * (1 + place) + cell.config.seed,
            "output_norm2": 10.0,
        }
        for place, name in enumerate(LAYERS)
    ]
    return {**_header(cell, t), "global": {"eigenvalues": pair(top)}, "layers": layers, "loss": 0.5}


def _trace(cell: Cell) -> dict[str, Any]:
    return {**_header(cell, 20), "trace": {"value": 100 * eigenvalue_of(cell), "standard_error": 5.0}}


def _density(cell: Cell) -> dict[str, Any]:
    grid = np.linspace(-5, 1.1 * eigenvalue_of(cell), 100)
    density = np.exp(-(grid**2)) + 1e-5 * np.exp(-((grid - eigenvalue_of(cell)) ** 2))
    return {
        **_header(cell, 20),
        "grid": grid.tolist(),
        "density": density.tolist(),
        "standard_error": (density / 10).tolist(),
        "sigma": 0.5,
        "size": 815332,
    }


def _surface(cell: Cell) -> dict[str, Any]:
    a = np.linspace(-1, 1, 9)
    losses = 0.5 + eigenvalue_of(cell) * (a[:, None] ** 2 + 0.3 * a[None, :] ** 2) / 10
    return {**_header(cell, 20), "a": a.tolist(), "b": a.tolist(), "losses": losses.tolist()}


def _split(cell: Cell) -> dict[str, Any]:
    counts = np.random.default_rng(0).multinomial(50, np.full(100, 0.01), size=100)
    return {"config": cell.config.plain(), "counts": counts.tolist(), "versions": VERSIONS}
