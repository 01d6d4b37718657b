"""Which runs share a row: pairs that a preset tunes apart for MAN, and methods that differ in hyperparameters alone."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from figures.tables import make_tables
from flatlab.federated.config import make_config
from flatlab.federated.config_file import write_config
from flatlab.federated.presets import preset_fields
from flatlab.grid.plan import grid_cells, parse_grid
from flatlab.grid.saved_results import read_results
from flatlab.runs.checkpoint import Checkpoint, save_checkpoint

GRID = """
title = "As in the paper"
preset = "tiny-imagenet"
target_accuracy = 0.5
[common]
rounds = 1
model = "cifar-cnn"
[axes]
algorithms = ["fedavg", "fedsam", "feddyn", "fedprox"]
partitions = ["iid", "dirichlet-0.3"]
seeds = [0, 1]
"""

NOTE = "As the preset says, without and with MAN: FedSAM, IID: rho 0.03 and 0.01."


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "grid.toml").write_text(GRID)
    for cell in grid_cells(parse_grid(GRID, "test")):
        folder = tmp_path / cell.name
        folder.mkdir()
        write_config(folder / "config.toml", cell.config)
        accuracy = 0.5 + 0.1 * cell.config.man + 0.01 * cell.config.seed
        (folder / "metrics.jsonl").write_text(f'{{"round": 1, "test_accuracy": {accuracy}}}\n')
        save_checkpoint(folder / "final.pt", Checkpoint(cell.config, 1, {}, {}, {}, {}))
    return tmp_path


def test_a_pair_that_the_preset_tunes_apart_is_one_row(results: Path) -> None:
    tables = {table.name: table for table in make_tables(read_results(results))[0]}
    assert set(tables) == {"accuracy", "rounds", "ranks", "man"}
    accuracy = {row[:2]: row[2:4] for row in tables["accuracy"].rows}
    assert len(accuracy) == 8
    assert accuracy["IID", "FedSAM"] == ("50.50 ± 0.71", "60.50 ± 0.71")
    assert {row[1] for row in tables["man"].rows if row[0] == "IID"} == {"FedAvg", "FedSAM", "FedDyn", "FedProx"}
    assert all(NOTE in table.notes for table in tables.values())


def test_without_the_grid_they_are_runs_that_differ_in_a_hyperparameter(results: Path) -> None:
    (results / "grid.toml").unlink()
    table = make_tables(read_results(results))[0][0]
    rows = {row[:2]: row[2:4] for row in table.rows}
    assert rows["IID, rho 0.03", "FedSAM"] == ("50.50 ± 0.71", "")
    assert rows["IID, rho 0.01", "FedSAM"] == ("", "60.50 ± 0.71")
    assert not any("preset" in note for note in table.notes)


OTHERWISE: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedsam": {"lr": 0.001, "local_epochs": 6},
    "feddyn": {"report": "selected", "batch_size": 3},
    "fedavgm": {"weight_decay": 0.5},
}


def write_runs(folder: Path, fields: Mapping[str, Mapping[str, Any]]) -> None:
    """Two seeds of every algorithm, trained with its `fields`."""
    for algorithm, seed in product(fields, (0, 1)):
        run = folder / f"{algorithm}-s{seed}"
        run.mkdir()
        config = make_config({**fields[algorithm], "algorithm": algorithm, "seed": seed, "rounds": 1})
        write_config(run / "config.toml", config)
        (run / "metrics.jsonl").write_text('{"round": 1, "test_accuracy": 0.5}\n')
        save_checkpoint(run / "final.pt", Checkpoint(config, 1, {}, {}, {}, {}))


def test_methods_that_were_trained_differently_share_no_row(tmp_path: Path) -> None:
    write_runs(tmp_path, OTHERWISE)
    tables = {table.name: table for table in make_tables(read_results(tmp_path))[0]}
    named = {row[1]: row[0] for row in tables["accuracy"].rows}
    assert len(set(named.values())) == len(tables["accuracy"].rows) == 4
    assert named["FedSAM"] == (
        "Dirichlet 0.3, local_epochs 6, batch_size 20, lr 0.001, weight_decay 0.001, report server"
    )
    assert "ranks" not in tables


def test_each_method_s_own_hyperparameters_leave_it_beside_the_others(tmp_path: Path) -> None:
    """As a preset has them, and others; what they are is no field of the other method."""
    preset = {name: preset_fields("cifar100-dir0.3", name, man=False) for name in ("fedavg", "fedspeed")}
    write_runs(tmp_path, {**preset, "fedsam": {**preset["fedavg"], "hyper": {"rho": 0.7}}})
    assert {row[:2] for row in make_tables(read_results(tmp_path))[0][0].rows} == {
        ("Dirichlet 0.3", "FedAvg"), ("Dirichlet 0.3", "FedSAM"), ("Dirichlet 0.3", "FedSpeed")
    }  # fmt: skip
