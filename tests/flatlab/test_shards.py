"""Shares of a grid as jobs of a Slurm array: cut off, queued again, and together what one process makes."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatlab.errors import UsageError
from flatlab.grid.cells import CellWork
from flatlab.grid.plan import grid_cells, parse_grid
from flatlab.grid.reproduction import Where, read_reproduction
from flatlab.grid.shards import Shard, read_shard
from tests.command_line import ROOT, flatlab, program

GRID = """
title = "small"
[common]
rounds = {rounds}
clients = 5
train_samples = 200
test_samples = 100
checkpoint_every = 20
eval_every = 20
[axes]
algorithms = ["fedavg"]
partitions = ["iid"]
seeds = [0]
[measure]
samples = 50
trace_tol = 0.5
density_depth = 4
density_probes = 1
surface_points = 3
"""

STUB = Path(__file__).with_name("slurm_stub.py")


@given(st.integers(1, 30), st.integers(1, 12))
def test_shards_are_a_partition_of_almost_equal_shares(cells: int, of: int) -> None:
    text = GRID.format(rounds=1).replace("[0]", str(list(range(cells))))
    whole = grid_cells(parse_grid(text, "small"))
    shares = [Shard(number, of).cells(whole) for number in range(1, of + 1)]
    assert sorted(cell.name for share in shares for cell in share) == sorted(cell.name for cell in whole)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("words", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1.5/3", "1/3/5", "", "9" * 30 + "/3"])
def test_what_is_no_shard_is_refused(words: str) -> None:
    with pytest.raises(UsageError, match="--shard is one of so many, from 1/20"):
        read_shard(words)


def test_a_shard_is_of_the_cells_that_are_asked_for(tmp_path: Path) -> None:
    grid = tmp_path / "small.toml"
    grid.write_text(GRID.format(rounds=1).replace("[0]", "[0, 1, 2]"))
    chosen = read_reproduction(str(grid), Where(tmp_path / "out", shard=Shard(2, 2)), ["fedavg-s*"]).chosen
    assert [cell.name for cell in chosen] == ["fedavg-s1"]


@pytest.mark.long
def test_an_array_that_is_cut_off_and_queued_again_makes_the_grid_of_one_process(tmp_path: Path) -> None:
    """One task is told that its time is up, the node of the other is lost."""
    (tmp_path / "small.toml").write_text(GRID.format(rounds=60))
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        (commands / name).write_text(f"#!{sys.executable}\n{STUB.read_text()}")
    (commands / "flatlab").write_text(f'#!/bin/sh\nexec {sys.executable} -m flatlab "$@"\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    faults = {"1": ["TERM", "out/fedavg-s0/round-0020.pt"], "2": ["KILL", "out/fedavg-man-s0/round-0020.pt"]}
    own = {"PATH": f"{commands}:{os.environ['PATH']}", "SHARDS": "2", "FAULTS": json.dumps(faults)}
    script = ROOT / "docs" / "examples" / "grid.sbatch"
    done = program("sbatch", "--array=1-2", script, "small.toml", "out", cwd=tmp_path, variables=own)
    logs = "".join(log.read_text() for log in sorted(tmp_path.glob("*.log")))
    assert done.returncode == 0, done.stderr + logs
    assert json.loads((tmp_path / "history.json").read_text()) == {"1": [143, 0], "2": [-9, 0]}, logs
    assert logs.count("Interrupted; what was done is saved") == 1
    assert (tmp_path / "out" / "report.html").exists()
    listed = flatlab("reproduce", "small.toml", "--out", "out", "--list-cells", cwd=tmp_path)
    assert listed.stdout.splitlines() == ["fedavg-s0  done  60/60", "fedavg-man-s0  done  60/60"]

    for cell in grid_cells(parse_grid(GRID.format(rounds=60), "small")):
        together, alone = tmp_path / "out" / cell.name, tmp_path / "alone" / cell.name
        CellWork(None, "cpu")(cell, alone)
        assert_same_tensors(together / "final.pt", alone / "final.pt")
        measured = sorted(file.name for file in alone.glob("*.json"))
        assert measured == sorted(file.name for file in together.glob("*.json"))
        for name in measured:
            assert numbers(together / name) == numbers(alone / name)


def assert_same_tensors(one: Path, two: Path) -> None:
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in (one, two))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def numbers(path: Path) -> Any:
    """A measurement without what is of the moment and the place: seconds, and the paths of its checkpoint."""
    content = json.loads(path.read_text())

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            passing = ("seconds", "images_per_second", "evaluation_seconds", "checkpoint")
            return {key: without(item) for key, item in value.items() if key not in passing}
        return [without(item) for item in value] if isinstance(value, list) else value

    return without(content)
