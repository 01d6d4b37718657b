"""What an earlier training left in a folder: never taken for the newest one's, nor lost before that is there."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import flatlab
from flatlab.errors import UsageError
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.execution import go_on
from flatlab.federated.rounds import Run, train
from flatlab.federated.trial import tried
from flatlab.federated.world import World, make_world
from flatlab.grid.cell_progress import DIED, FAILURE, cell_progress, read_failure
from flatlab.grid.cells import CellWork, execution_of_cells
from flatlab.grid.finished import finished as finished_of
from flatlab.grid.plan import Cell, grid_cells, parse_grid
from flatlab.grid.saved_results import read_results
from flatlab.runs.checkpoint import load_checkpoint, save_checkpoint
from flatlab.runs.folder import RunFolder
from flatlab.runs.metrics import Record
from flatlab.runs.saved import read_measurement
from tests.command_line import flatlab as command
from tests.flatlab.test_grid_folders import GRID


def cell_of(more: str = "") -> Cell:
    (cell,) = grid_cells(parse_grid(GRID.format(rounds=2, samples=50, seeds="0") + more, "g.toml"))
    return cell


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a cell that is trained and measured."""
    CellWork(None, "cpu")(cell_of(), tmp_path / "fedavg-s0")
    return tmp_path / "fedavg-s0"


def retrain(folder: Path) -> None:
    """Other weights of the same run, as another version of flatlab or of the user's code makes them."""
    checkpoint = load_checkpoint(folder / "final.pt")
    moved = {name: x + 0.01 for name, x in checkpoint.state_dict.items()}
    save_checkpoint(folder / "final.pt", replace(checkpoint, state_dict=moved))


def test_what_was_measured_of_other_weights_is_measured_again(finished: Path) -> None:
    old = read_measurement(finished / "final.eigs.json", "eigs")
    assert cell_progress(cell_of(), finished).done
    retrain(finished)
    assert set(cell_progress(cell_of(), finished).missing) == {*cell_of().kinds} - {"training"}
    with pytest.raises(UsageError, match=r"final\.\w+\.json was not made of the run .* data or weights"):
        read_results(finished.parent)
    CellWork(None, "cpu")(cell_of(), finished)
    assert cell_progress(cell_of(), finished).done
    new = read_measurement(finished / "final.eigs.json", "eigs")
    assert new["global"]["eigenvalues"][0]["value"] != old["global"]["eigenvalues"][0]["value"]


def test_results_without_weights_are_of_any(finished: Path) -> None:
    for path in finished.glob("*.pt"):
        path.unlink()
    assert cell_progress(cell_of(), finished).done
    assert read_results(finished.parent).runs[0].measured["eigs"]


@pytest.mark.long
def test_a_study_measures_other_weights_again_whatever_the_clock_says(tmp_path: Path) -> None:
    for words in ((), ("--man",)):
        out = ("--out", f"run{len(words)}", "--rounds", "1", "--clients", "4", "--set", "train_samples=100")
        assert command("train", *out, *words, cwd=tmp_path).returncode == 0
    line = ("verify", "--study", "run0/final.pt", "run1/final.pt", "--samples", "50", "--out", "study")
    command(*line, cwd=tmp_path)
    kept = tmp_path / "run0" / "final.measures.json"
    before = kept.read_bytes()
    command(*line, cwd=tmp_path)
    assert kept.read_bytes() == before
    retrain(tmp_path / "run0")
    shutil.copy(tmp_path / "study" / "study.json", tmp_path)
    assert read_results(tmp_path).outdated_study.startswith(str(tmp_path / "run0" / "final.pt"))
    assert not read_results(tmp_path).study
    later = kept.stat().st_mtime + 100
    os.utime(kept, (later, later))
    command(*line, cwd=tmp_path)
    assert kept.read_bytes() != before
    shutil.copy(tmp_path / "study" / "study.json", tmp_path)
    assert read_results(tmp_path).study
    content = json.loads((tmp_path / "study.json").read_text())
    for subject in content["subjects"]:  # of a folder beside this one, whose runs are called alike
        subject["checkpoint"] = str(tmp_path / "elsewhere" / subject["checkpoint"])
        subject["fingerprint"] |= {"weights": "0" * 16, "more": 1}
    shutil.copytree(tmp_path / "run0", tmp_path / "elsewhere" / "run0")
    shutil.copytree(tmp_path / "run1", tmp_path / "elsewhere" / "run1")
    (tmp_path / "study.json").write_text(json.dumps(content))
    assert read_results(tmp_path).study


def test_more_samples_than_there_are_end_a_cell_before_its_training(tmp_path: Path) -> None:
    cell = cell_of()
    few = replace(cell, config=cell.config.model_copy(update={"train_samples": 40}))
    with pytest.raises(UsageError, match=r"measures 50 training samples .*, and digits has 40"):
        CellWork(None, "cpu")(few, tmp_path / "few")
    assert not list((tmp_path / "few").glob("*.pt"))


def test_a_loaded_checkpoint_is_the_same_in_another_folder(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "elsewhere" / finished.name)
    retrain(tmp_path / "elsewhere" / finished.name)
    monkeypatch.chdir(tmp_path)
    checkpoint = flatlab.load(f"{finished.name}/final.pt")
    here = flatlab.eigs(checkpoint, samples=50, layers="none").eigenvalues[0].value
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert flatlab.eigs(checkpoint, samples=50, layers="none").eigenvalues[0].value == here


def test_a_run_that_begins_anew_keeps_what_was_finished_until_it_is(finished: Path) -> None:
    records = (finished / "metrics.jsonl").read_bytes()
    for path in finished.glob("*.pt"):
        path.unlink()
    RunFolder(finished).begin(cell_of().config)
    assert (finished / "metrics.jsonl").read_bytes() == b""
    assert (finished / "former" / "metrics.jsonl").read_bytes() == records
    CellWork(None, "cpu")(cell_of("flatness = true\n"), finished)
    assert not (finished / "former").exists()
    assert load_checkpoint(finished / "final.pt").round == 2
    assert "former/ until this one has its last round" in (finished / "run.log").read_text()


def test_what_was_finished_survives_a_start_that_was_killed(finished: Path) -> None:
    records = (finished / "metrics.jsonl").read_bytes()
    (finished / "final.pt").unlink()
    (finished / "resume.pt").unlink()
    for _ in range(2):  # each writes a round, and is killed before its first save
        files = RunFolder(finished)
        files.begin(cell_of().config)
        (finished / "metrics.jsonl").write_bytes(records.splitlines(keepends=True)[0])
    assert (finished / "former" / "metrics.jsonl").read_bytes() == records


def test_results_without_weights_that_are_of_several_are_refused(finished: Path) -> None:
    retrain(finished)
    kept = (finished / "final.trace.json").read_bytes()
    CellWork(None, "cpu")(cell_of(), finished)
    (finished / "final.trace.json").write_bytes(kept)
    for path in finished.glob("*.pt"):
        path.unlink()
    with pytest.raises(UsageError, match="data or weights"):
        read_results(finished.parent)


@pytest.mark.long
def test_a_broken_cell_of_another_call_does_not_stop_this_one(finished: Path) -> None:
    text = GRID.format(rounds=2, samples=50, seeds="0, 1")
    (finished.parent / "g.toml").write_text(text)
    (finished / "final.pt").write_bytes(b"broken")
    done = command("reproduce", "g.toml", "--out", ".", "--only", "fedavg-s1", "--jobs", "1", cwd=finished.parent)
    assert "Traceback" not in done.stderr
    assert (finished.parent / "fedavg-s1" / "final.pt").exists()


@contextmanager
def stopped_after_a_round(run: Run) -> Iterator[Callable[[Record], None]]:
    def stop(record: Record) -> None:
        raise KeyboardInterrupt

    yield stop


def test_a_cell_that_is_cut_off_while_it_is_trained_again_goes_on(finished: Path) -> None:
    (finished / "resume.pt").unlink()
    cell = cell_of("keep_clients = [1]\n")
    execution = replace(execution_of_cells("cpu"), keep_clients=(1,))
    with pytest.raises(KeyboardInterrupt):
        go_on(tried(make_world(cell.config)), finished, execution, watch=stopped_after_a_round, anew=True)
    assert cell_progress(cell, finished).state(busy=False) == "begun"
    CellWork(None, "cpu")(cell, finished)
    assert cell_progress(cell, finished).done


def test_a_cell_at_work_has_not_failed(tmp_path: Path) -> None:
    (tmp_path / FAILURE).write_text(DIED + "\n")
    assert read_failure(tmp_path) == DIED
    with RunFolder(tmp_path).locked():
        assert read_failure(tmp_path) == ""


def test_an_earlier_checkpoint_in_the_place_of_the_last_is_replaced(
    toy_world: Callable[..., World], tmp_path: Path
) -> None:
    world = toy_world(rounds=2, checkpoint_every=1)
    run = Run(world, tmp_path)
    run.begin()
    with SequentialEngine(world) as engine:
        train(run, engine, lambda record: None)
        shutil.copy(tmp_path / "round-0001.pt", tmp_path / "final.pt")
        again = Run(world, tmp_path)
        again.resume()
        train(again, engine, lambda record: None)
    assert load_checkpoint(tmp_path / "final.pt").round == 2


def test_a_run_that_two_commits_made_names_both(toy_world: Callable[..., World], tmp_path: Path) -> None:
    world = toy_world(rounds=2)
    run = Run(world, tmp_path)
    now, run.commits = run.commits[0], ["0" * 40]
    run.begin()
    with SequentialEngine(world) as engine:
        run.advance(engine)
        run.save()
        again = Run(world, tmp_path)
        again.resume()
        train(again, engine, lambda record: None)
    assert load_checkpoint(tmp_path / "final.pt").provenance["commit"] == f"{'0' * 40}, {now}"


def test_a_broken_measurement_is_named_before_the_work(finished: Path) -> None:
    (finished / "final.eigs.json").write_text("{")
    done = command("eigs", "final.pt", "--samples", "50", cwd=finished)
    assert done.returncode == 2
    assert "final.eigs.json" in done.stderr
    assert not done.stdout


def test_weights_are_told_apart_by_every_bit(finished: Path) -> None:
    one = load_checkpoint(finished / "final.pt")
    name = next(iter(one.state_dict))
    other = {**one.state_dict, name: torch.nextafter(one.state_dict[name], torch.tensor(9.0))}
    assert one.fingerprint.agrees(replace(one).fingerprint)
    assert not one.fingerprint.agrees(replace(one, state_dict=other).fingerprint)


def test_a_run_that_is_trained_anew_is_not_finished_before_its_last_checkpoint(finished: Path) -> None:
    for path in finished.glob("*.pt"):
        path.unlink()
    assert finished_of(cell_of().config, finished) is not None
    (finished / "former").mkdir()  # its last line of metrics is there, and final.pt found no room
    assert finished_of(cell_of().config, finished) is None
    assert not cell_progress(cell_of(), finished).done
    assert not read_results(finished.parent).runs[0].trained


@pytest.mark.parametrize("name", ["round-0001", "clients-0002"])
def test_curvature_of_other_weights_is_refused_wherever_it_was_measured(name: str, tmp_path: Path) -> None:
    grid = GRID.format(rounds=2, samples=50, seeds="0").replace("[axes]", "checkpoint_every = 1\n[axes]")
    (cell,) = grid_cells(parse_grid(grid + "keep_clients = [2]\n", "g.toml"))
    folder = tmp_path / "fedavg-s0"
    CellWork(None, "cpu")(cell, folder)
    (run,) = read_results(tmp_path).runs
    assert run.measured["local"] if name == "clients-0002" else run.training
    checkpoint = load_checkpoint(folder / f"{name}.pt")
    moved = {key: x + 0.01 for key, x in checkpoint.state_dict.items()}
    save_checkpoint(folder / f"{name}.pt", replace(checkpoint, state_dict=moved))
    with pytest.raises(UsageError, match=rf"{name}\.\w+\.json was not made of the run"):
        read_results(tmp_path)
    (folder / f"{name}.pt").unlink()  # results without weights are of any
    assert read_results(tmp_path).runs
