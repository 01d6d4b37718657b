"""A grid's folder between processes: held, waited for, terminated, changed, and gone on with."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flatlab.data import load_images
from flatlab.grid.cell_progress import DIED, cell_progress
from flatlab.grid.cells import CellWork
from flatlab.grid.plan import Cell, grid_cells, parse_grid
from flatlab.runs.fingerprint import data_digest
from flatlab.runs.folder import RunFolder
from tests.command_line import SECONDS, environment, flatlab, wait_until

GRID = """
title = "t"
[common]
rounds = {rounds}
clients = 5
train_samples = 200
test_samples = 100
[axes]
algorithms = ["fedavg"]
man = [false]
partitions = ["iid"]
seeds = [{seeds}]
[measure]
samples = {samples}
trace_tol = 0.5
density_depth = 4
density_probes = 1
surface_points = 3
"""


def write_grid(folder: Path, rounds: int = 1, samples: int = 50, seeds: str = "0") -> None:
    (folder / "g.toml").write_text(GRID.format(rounds=rounds, samples=samples, seeds=seeds))


REPRODUCE = ("reproduce", "g.toml", "--out", "o", "--jobs", "1", "--json", "r.json")


def started(folder: Path) -> "subprocess.Popen[str]":
    """`flatlab reproduce` at work in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "flatlab", *REPRODUCE],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


@pytest.fixture
def long_grid(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """`flatlab reproduce` of a long run, once its first state is saved."""
    write_grid(tmp_path, rounds=100_000)
    with started(tmp_path) as process:
        wait_until(lambda: (tmp_path / "o/fedavg-s0/metrics.jsonl").exists(), process)
        wait_until(lambda: len((tmp_path / "o/fedavg-s0/metrics.jsonl").read_text().splitlines()) > 1, process)
        yield process
        process.kill()


LOCKS = """
import sys
from pathlib import Path
from flatlab.runs.folder import RunFolder
from flatlab.runs.lock import BusyError

got = 0
for _ in range(1000):
    try:
        with RunFolder(Path(sys.argv[1]) / "deep" / "run").locked():
            got += 1
    except BusyError:
        pass
assert got
"""


@pytest.mark.long
def test_processes_that_lock_and_take_away_the_same_empty_folder(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", LOCKS, str(tmp_path)], stderr=subprocess.PIPE) for _ in "123"]
    for process in processes:
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said.decode()
    assert not list(tmp_path.rglob("run"))


@pytest.mark.long
def test_a_changed_grid_measures_again_and_leaves_another_run_alone(tmp_path: Path) -> None:
    write_grid(tmp_path)
    first = flatlab(*REPRODUCE, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    cell = tmp_path / "o" / "fedavg-s0"
    parameters = (cell / "final.pt").read_bytes()

    write_grid(tmp_path, samples=60)
    second = flatlab(*REPRODUCE, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    for kind in ("eigs", "trace", "density", "surface"):
        assert json.loads((cell / f"final.{kind}.json").read_text())["data"]["samples"] == 60
        assert json.loads((cell / f"final.{kind}-50.json").read_text())["data"]["samples"] == 50
    assert (cell / "final.pt").read_bytes() == parameters
    third = flatlab(*REPRODUCE, cwd=tmp_path)
    assert "1 of 1 cells are done, 0 of them by this call" in third.stdout
    (planned,) = grid_cells(parse_grid((tmp_path / "g.toml").read_text(), "g.toml"))
    assert cell_progress(planned, cell, data_digest(load_images("digits").subset(200, 100, 0))).done
    changed = cell_progress(planned, cell, "0" * 16)
    assert not changed.done
    assert "holds a run on other images or labels than digits now has: move it away" in changed.another

    write_grid(tmp_path, rounds=2, samples=60)
    names = {path: path.stat().st_mtime_ns for path in cell.iterdir()}
    described = (tmp_path / "o/grid.toml").read_text()
    fourth = flatlab(*REPRODUCE, cwd=tmp_path)
    assert fourth.returncode == 1
    assert "holds a run with another rounds (1; the grid says 2)" in fourth.stdout
    assert json.loads((tmp_path / "r.json").read_text())["cells"]["fedavg-s0"]["done"] is False
    assert {path: path.stat().st_mtime_ns for path in cell.iterdir()} == names
    assert (tmp_path / "o/grid.toml").read_text() == described  # the grid whose results lie there


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_terminated_grid_saves_its_cells(
    how: signal.Signals, long_grid: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    long_grid.send_signal(how)
    _, said = long_grid.communicate(timeout=SECONDS)
    assert long_grid.returncode == 128 + how, said
    cell = tmp_path / "o" / "fedavg-s0"
    saved = torch.load(cell / "resume.pt", weights_only=True)["server"]["round"]
    assert saved == len((cell / "metrics.jsonl").read_text().splitlines()) > 0
    assert not (cell / "failure.txt").exists()
    assert not list((tmp_path / "o").glob(".stop*"))


@pytest.mark.long
def test_a_call_waits_for_a_cell_that_another_process_has_in_work(tmp_path: Path) -> None:
    write_grid(tmp_path)
    cell = RunFolder(tmp_path / "o" / "fedavg-s0")
    note = cell.path / "failure.txt"
    with cell.locked():  # as the other process does
        note.write_text(f"{DIED}\n")
        process = started(tmp_path)
        assert process.stderr is not None
        assert process.stderr.readline() == "Another process is at work on fedavg-s0: waiting for it.\n"
        assert note.read_text() == f"{DIED}\n"
        note.unlink()
    stdout, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, stderr
    assert "1 of 1 cells are done" in stdout


def test_a_finished_cell_whose_clients_are_asked_for_is_trained_again(tmp_path: Path) -> None:
    def keeping(rounds: str) -> Cell:
        text = GRID.format(rounds=2, samples=50, seeds="0") + f"local_clients = 1\nkeep_clients = {rounds}\n"
        (cell,) = grid_cells(parse_grid(text, "g.toml"))
        return cell

    work, folder = CellWork(None, "cpu"), tmp_path / "fedavg-s0"
    work(keeping("[2]"), folder)
    assert cell_progress(keeping("[2]"), folder).done
    before = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    weights = torch.load(folder / "final.pt", weights_only=True)["state_dict"]
    (folder / "clients-0002.pt").unlink()  # measured, and left out
    assert cell_progress(keeping("[2]"), folder).done
    assert cell_progress(keeping("[1, 2]"), folder).state(busy=False) == "not-begun"
    work(keeping("[1, 2]"), folder)
    assert cell_progress(keeping("[1, 2]"), folder).done
    assert {path.name for path in folder.glob("*.json")} == {*before, "clients-0001.local.json"}
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    again = torch.load(folder / "final.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
