"""Rows of a grid whose preset has other hyperparameters for MAN: the two are one pair, and a note names both."""

from pathlib import Path

import pytest

from figures.tables import make_tables
from flatlab.federated.config_file import write_config
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
