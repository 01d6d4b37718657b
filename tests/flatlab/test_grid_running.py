"""Running a grid: resumed, repeated, with failures and deaths, on processes and on a Dask cluster."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flatlab.cli.main import main
from flatlab.cli.watched_run import train_run
from flatlab.errors import FlatlabError
from flatlab.federated.execution import Execution
from flatlab.grid.carry import run_cells
from flatlab.grid.cell_progress import DIED, cell_progress
from flatlab.grid.cells import CellWork
from flatlab.grid.plan import Cell, grid_cells, parse_grid
from tests.command_line import is_left, wait_until

GRID = """
title = "small"
target_accuracy = 0.5
[common]
rounds = {rounds}
clients = 5
train_samples = 200
test_samples = 100
checkpoint_every = 2
eval_every = 1
[axes]
algorithms = ["fedavg"]
partitions = ["iid"]
seeds = [{seeds}]
[measure]
samples = 50
trace_tol = 0.5
density_depth = 4
density_probes = 1
surface_points = 3
"""


def cells_of(seeds: str = "0", rounds: int = 3, extra: str = "") -> tuple[Cell, ...]:
    return grid_cells(parse_grid(GRID.format(seeds=seeds, rounds=rounds) + extra, "small"))


def command(*words: str) -> int:
    """Run the command line in this process; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["flatlab", *words])
        patch.setenv("COLUMNS", "150")
        with pytest.raises(SystemExit) as left:
            main()
    return int(left.value.code or 0)


def parameters(checkpoint: Path) -> dict[str, torch.Tensor]:
    states: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return states


def same_parameters(one: Path, two: Path) -> bool:
    first, second = parameters(one), parameters(two)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.long
def test_a_grid_is_run_once_and_ends_with_tables_figures_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, out = tmp_path / "small.toml", tmp_path / "results"
    grid.write_text(GRID.format(seeds="0", rounds=3))
    words = ("reproduce", str(grid), "--out", str(out), "--jobs", "1", "--json", str(tmp_path / "r.json"))
    assert command(*words, "--dry-run") == 0
    assert not out.exists()
    plan = json.loads((tmp_path / "r.json").read_text())
    assert set(plan["cells"]) == {"fedavg-s0", "fedavg-man-s0"}
    assert all(seconds > 0 for seconds in plan["cells"].values())

    assert command(*words) == 0
    said = capsys.readouterr().out
    assert "2 of 2 cells are done, 2 of them by this call" in said
    assert "Test accuracy after the last round" in said
    names = {path.name for path in (out / "fedavg-s0").iterdir()}
    assert names >= {"config.toml", "metrics.jsonl", "final.pt", "round-0002.pt", "round-0002.eigs.json"}
    assert names >= {f"final.{kind}.json" for kind in ("eigs", "trace", "density", "surface", "split")}
    assert (out / "report.html").exists()
    assert (out / "tables" / "accuracy.tex").exists()
    assert (out / "figures" / "surface.pdf").exists()
    assert json.loads((tmp_path / "r.json").read_text())["cells"]["fedavg-man-s0"]["done"] is True

    # the run is the one that `flatlab train` makes
    for cell in cells_of():
        train_run(cell.config, tmp_path / "alone" / cell.name, Execution(workers=1))
        assert same_parameters(out / cell.name / "final.pt", tmp_path / "alone" / cell.name / "final.pt")

    # a second call does only what is missing
    times = {path: path.stat().st_mtime_ns for path in out.rglob("final.*")}
    (out / "fedavg-s0" / "final.trace.json").unlink()
    capsys.readouterr()
    assert command(*words) == 0
    assert "2 of 2 cells are done, 1 of them by this call" in capsys.readouterr().out
    changed = {path.name for path, before in times.items() if path.stat().st_mtime_ns != before}
    assert changed == {"final.trace.json"}


@pytest.mark.long
def test_results_are_complete_without_their_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, out = tmp_path / "small.toml", tmp_path / "results"
    grid.write_text(GRID.format(seeds="0", rounds=3))
    words = ("reproduce", str(grid), "--out", str(out), "--jobs", "1")
    assert command(*words) == 0
    page = {path.name: path.read_bytes() for path in (out / "tables").iterdir()}
    for weights in out.rglob("*.pt"):
        weights.unlink()
    shutil.rmtree(out / "tables")
    capsys.readouterr()
    assert command(*words) == 0
    assert "2 of 2 cells are done, 0 of them by this call" in capsys.readouterr().out
    assert command("report", str(out)) == 0
    assert {path.name: path.read_bytes() for path in (out / "tables").iterdir()} == page

    # what is not measured needs the weights again
    (out / "fedavg-s0" / "final.trace.json").unlink()
    assert command(*words, "--list-cells") == 0
    assert "fedavg-s0  not-begun  0/3" in capsys.readouterr().out
    assert command(*words) == 0
    assert "2 of 2 cells are done, 1 of them by this call" in capsys.readouterr().out
    assert (out / "fedavg-s0" / "final.pt").exists()
    assert not (out / "fedavg-man-s0" / "final.pt").exists()

    # begun anew and cut off: what was measured before says nothing of where it is now
    rounds = out / "fedavg-man-s0" / "metrics.jsonl"
    rounds.write_text(rounds.read_text().partition("\n")[0] + "\n")
    assert command(*words, "--list-cells") == 0
    assert "fedavg-man-s0  begun  1/3" in capsys.readouterr().out

    # measurements of another run say nothing of this one
    grid.write_text(GRID.format(seeds="0", rounds=4))
    assert command(*words) == 1
    assert "holds a run with another rounds (3; the grid says 4)" in capsys.readouterr().out


@pytest.mark.long
def test_a_failure_is_listed_and_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, out = tmp_path / "small.toml", tmp_path / "results"
    grid.write_text(GRID.format(seeds="0", rounds=1) + "[sensitivity]\nzetas = [1e39]\n")
    (out / "fedavg-s0").mkdir(parents=True)
    (out / "fedavg-s0" / "config.toml").write_text("rounds = 7\n")
    assert command("reproduce", str(grid), "--out", str(out), "--jobs", "1") == 1
    said = capsys.readouterr().out
    assert "1 of 3 cells are done" in said
    assert "fedavg-s0 failed: " in said
    assert "holds a run with another train_samples (None; the grid says 200)" in said
    assert "fedavg-man-zeta1e+39-s0 failed: Training diverged in round 1" in said
    assert (out / "fedavg-s0" / "config.toml").read_text() == "rounds = 7\n"
    assert "diverged" in (out / "report.html").read_text()


def test_an_unexpected_error_leaves_its_traceback(tmp_path: Path) -> None:
    def work(cell: Cell, folder: Path) -> None:
        raise ZeroDivisionError("by design")

    outcomes = list(run_cells(cells_of(), tmp_path, work, jobs=1))
    assert [failure for _, failure in outcomes] == ["ZeroDivisionError: by design"] * 2
    assert "Traceback" in (tmp_path / "fedavg-s0" / "failure.txt").read_text()


@pytest.mark.long
def test_a_cell_whose_process_dies_is_tried_again_and_then_given_up(tmp_path: Path) -> None:
    cells = cells_of(seeds="0, 1")

    def work(cell: Cell, folder: Path) -> None:
        with (folder / "tries").open("a") as file:
            file.write("x")
        if cell.name == "fedavg-man-s0":
            os._exit(7)
        time.sleep(0.5)  # so that an innocent cell is running when the other dies
        (folder / "did").touch()

    outcomes = {cell.name: failure for cell, failure in run_cells(cells, tmp_path, work, jobs=2)}
    assert outcomes.pop("fedavg-man-s0") == DIED
    assert outcomes == {"fedavg-s0": "", "fedavg-s1": "", "fedavg-man-s1": ""}
    assert (tmp_path / "fedavg-man-s0" / "tries").read_text() == "xx"  # once beside another, once alone
    assert all((tmp_path / name / "did").exists() for name in outcomes)


def test_a_cluster_that_cannot_be_used_is_one_error(tmp_path: Path) -> None:
    def work(cell: Cell, folder: Path) -> None:
        return None

    pytest.importorskip("distributed")
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(FlatlabError, match="worker processes stopped"),
    ):
        list(run_cells(cells_of(), tmp_path, work, jobs=1, backend="dask", scheduler="nowhere:1"))


@pytest.mark.long
def test_a_killed_grid_leaves_no_process_and_goes_on_to_the_same_end(tmp_path: Path) -> None:
    grid, out = tmp_path / "small.toml", tmp_path / "results"
    text = GRID.format(seeds="0", rounds=60).replace("checkpoint_every = 2", "checkpoint_every = 20")
    grid.write_text(text)
    words = [sys.executable, "-m", "flatlab", "reproduce", str(grid), "--out", str(out), "--jobs", "2"]
    with subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        wait_until(lambda: list(out.glob("*/round-0020.pt")), run)
        os.kill(run.pid, signal.SIGKILL)
    wait_until(lambda: not named(out) and not is_left(run.pid))
    cells = grid_cells(parse_grid(text, "small"))
    progress = [cell_progress(cell, out / cell.name) for cell in cells]
    assert any(0 < p.rounds < 60 for p in progress)
    assert not all(p.trained for p in progress)

    work = CellWork(None, "cpu")
    assert [failure for _, failure in run_cells(cells, out, work, jobs=1)] == ["", ""]
    for cell in cells:
        train_run(cell.config, tmp_path / "alone" / cell.name, Execution(workers=1))
        assert same_parameters(out / cell.name / "final.pt", tmp_path / "alone" / cell.name / "final.pt")


@pytest.mark.long
def test_a_local_dask_cluster_carries_the_grid(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    cells = cells_of(rounds=1, seeds="0")
    work = CellWork(None, "cpu")
    outcomes = {cell.name: failure for cell, failure in run_cells(cells, tmp_path / "a", work, jobs=2, backend="dask")}
    assert outcomes == {"fedavg-s0": "", "fedavg-man-s0": ""}
    assert all(cell_progress(cell, tmp_path / "a" / cell.name).done for cell in cells)
    list(run_cells(cells, tmp_path / "b", work, jobs=1))
    for cell in cells:
        assert same_parameters(tmp_path / "a" / cell.name / "final.pt", tmp_path / "b" / cell.name / "final.pt")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--backend", "ray"), "--backend is loky or dask"),
        (("--scheduler", "tcp://x:1"), "add --backend dask"),
        (("--device", "tpu"), "--device is auto, cpu or cuda"),
    ],
)
def test_bad_options_are_refused(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("reproduce", "toy", *words) == 2
    assert said in capsys.readouterr().err


def named(folder: Path) -> bool:
    """Whether a process whose command names `folder` is at work."""
    return bool(subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, check=False).stdout)
