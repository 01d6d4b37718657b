"""A run's folder: which run it holds, what goes on with it, what is refused, and what a measurement never replaces."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig, make_config
from flatlab.federated.config_file import write_config
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.request import read_fields
from flatlab.federated.rounds import Run, train
from flatlab.federated.world import World
from flatlab.runs.checkpoint import load_checkpoint
from flatlab.runs.fingerprint import Fingerprint, data_digest, differences, fingerprint, settled
from flatlab.runs.folder import RunFolder, default_folder
from tests.command_line import QUICK, flatlab


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("two-rounds")
    done = flatlab("train", "--algorithm", "fedsam", *QUICK, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def run(two_rounds: Path, tmp_path: Path) -> Path:
    """A finished run that the test may change."""
    return shutil.copytree(two_rounds, tmp_path / "run")


# ------------------------------------------------------------------ which run it is


def test_the_fingerprint_is_of_every_field_that_is_not_as_by_default() -> None:
    usual = fingerprint(make_config({"model": "mlp"}))
    assert usual == fingerprint(make_config({"model": "mlp", "lr": 0.1, "rounds": 60, "hyper": {}}))
    changes: list[dict[str, Any]] = [
        {"lr": 0.2}, {"rounds": 61}, {"seed": 1}, {"man": True}, {"algorithm": "fedsam"}, {"hidden": [64, 33]},
        {"algorithm": "fedsam", "hyper": {"rho": 0.5}}, {"eval_every": 3}, {"dataset": "cifar10"},
    ]  # fmt: skip
    found = {fingerprint(make_config({"model": "mlp", **change})).config for change in changes}
    assert len(found | {usual.config}) == len(changes) + 1
    # of a file that will be read for years: no later field with a default may change it
    assert usual.config == hashlib.sha256(b'{"model":"mlp"}').hexdigest()[:16]


def test_data_are_compared_where_both_are_known() -> None:
    one, other, unknown = Fingerprint("c", "1"), Fingerprint("c", "2"), Fingerprint("c")
    assert not one.agrees(other)
    assert one.agrees(unknown)
    assert unknown.agrees(other)
    assert not unknown.agrees(Fingerprint("d"))


def test_differences_name_every_field_and_hyperparameter() -> None:
    found = make_config({"algorithm": "fedsam", "lr": 0.2})
    wanted = make_config({"algorithm": "fedsam", "hyper": {"rho": 0.5}, "man": True})
    assert [(d.field, d.found, d.wanted) for d in differences(found, wanted)] == [
        ("hyper.rho", found.hyper["rho"], 0.5), ("man", False, True), ("lr", 0.2, 0.1)
    ]  # fmt: skip


def test_one_pixel_is_another_data_set(toy_world: Callable[..., World]) -> None:
    data = toy_world().data
    before = data_digest(data)
    assert data_digest(toy_world().data) == before
    data.train.images[0, 0, 0, 0] += 1
    assert data_digest(data) != before


def test_auto_is_the_model_that_it_stands_for() -> None:
    assert settled(RunConfig()).model == "mlp"
    assert settled(make_config({"dataset": "cifar100"})).model == "cifar-cnn"  # known without the data


def test_default_folders_hold_what_sets_runs_apart() -> None:
    fields: list[dict[str, Any]] = [
        {}, {"man": True}, {"man": True, "zeta": 0.05}, {"man": True, "zeta_logits": 2.0}, {"partition": "iid"},
        {"delta": 0.6}, {"seed": 1}, {"algorithm": "feddyn"}, {"man": True, "zeta": 0.0500000001},
        {"man": True, "zeta_logits": 2.0000001}, {"delta": 0.60000001}, {"swa_start": 0.5}, {"swa_start": 0.50000001},
    ]  # fmt: skip
    folders = [default_folder(make_config(own)).name for own in fields]
    assert folders[:3] == ["digits-fedavg-s0", "digits-fedavg-man-s0", "digits-fedavg-man-zeta0.05-s0"]
    assert len(set(folders)) == len(folders)


# ------------------------------------------------------------------ the same line again


def test_the_same_line_finds_the_run_finished_and_another_is_refused(run: Path, tmp_path: Path) -> None:
    before = (run / "final.pt").read_bytes()
    same = flatlab("train", "--algorithm", "fedsam", *QUICK, "--out", "run", "--json", "r.json", cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    assert "is finished" in same.stderr
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert json.loads((tmp_path / "r.json").read_text())["test_accuracy"] == last["test_accuracy"]

    other = flatlab(
        "train", "--algorithm", "fedsam", *QUICK, "--lr", "0.2", "--seed", "3", "--out", "run", cwd=tmp_path
    )
    assert other.returncode == 2
    assert "lr (0.1; asked for 0.2), seed (0; asked for 3)" in other.stderr
    assert (run / "final.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        ({}, ["hyper.rho=0.5"], r"hyper.rho \(0.05; asked for 0.5\)"),
        ({"algorithm": "fedavg"}, [], r"algorithm \(fedsam; asked for fedavg\), hyper.rho"),
        ({"lr": 1}, [], r"lr \(0.1; asked for 1.0\)"),
    ],
)
def test_resuming_compares_every_field_that_is_given(
    run: Path, options: dict[str, Any], settings: list[str], said: str
) -> None:
    config = read_fields(None, None, options, settings, resume=True, out=run)
    with pytest.raises(UsageError, match=said):
        RunFolder(run).require(config)


def test_resuming_takes_what_is_not_given_from_the_run(run: Path) -> None:
    config = read_fields(None, None, {"lr": 0.1}, [], resume=True, out=run)
    assert (config.rounds, config.clients, config.algorithm) == (2, 6, "fedsam")
    RunFolder(run).require(config)


def test_other_data_are_refused(toy_world: Callable[..., World], tmp_path: Path) -> None:
    world = toy_world(rounds=2)
    before = Run(world, tmp_path)
    with SequentialEngine(world) as engine:
        before.keep(before.step(engine))
    before.save()
    world.data.train.labels[0] = (world.data.train.labels[0] + 1) % 4
    with pytest.raises(UsageError, match="images or labels have changed"):
        Run(world, tmp_path).resume()


def test_files_without_fingerprint_are_read_by_their_configuration(run: Path) -> None:
    plain = torch.load(run / "final.pt", weights_only=True)
    older = {name: value for name, value in plain.items() if name not in ("fingerprint", "data")}
    torch.save(older, run / "final.pt")
    (run / "config.toml").unlink()
    checkpoint = load_checkpoint(run / "final.pt")
    assert checkpoint.fingerprint.config == plain["fingerprint"]["config"]
    assert RunFolder(run).finished(checkpoint.config) is not None
    assert RunFolder(run).finished(checkpoint.config.model_copy(update={"seed": 5})) is None


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked" / "tensorboard"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('not installed')\n")
    failed = flatlab("train", *QUICK, "--tensorboard", "--out", "run", cwd=tmp_path, first=blocked.parent)
    assert failed.returncode == 2
    assert "pip install" in failed.stderr
    assert not (tmp_path / "run").exists()


def test_a_first_round_that_diverges_does_not_block_the_next_start(
    toy_world: Callable[..., World], tmp_path: Path
) -> None:
    for begun in (False, True):  # a command, and a cell of a grid
        bad = toy_world(lr=1e300, rounds=1)
        run = Run(bad, tmp_path / "run")
        if begun:
            run.begin()
        with SequentialEngine(bad) as engine, pytest.raises(Exception, match="diverged in round 1"):
            train(run, engine, lambda record: None)
        RunFolder(tmp_path / "run").require(toy_world(lr=0.1, rounds=1).config)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("mine")
    for out, said in (("", "it is empty: name a folder"), ("afile", "afile is a file, and a run needs a folder")):
        done = flatlab("train", *QUICK, "--out", out, cwd=tmp_path)
        assert done.returncode == 2
        assert said in " ".join(done.stderr.replace("│", " ").split())
    assert [path.name for path in tmp_path.iterdir()] == ["afile"]
    assert (tmp_path / "afile").read_text() == "mine"


def test_what_is_saved_of_a_round_is_evaluated_after_it(toy_world: Callable[..., World], tmp_path: Path) -> None:
    world = toy_world(rounds=8, eval_every=4, checkpoint_every=3)
    run = Run(world, tmp_path / "run")
    run.begin()
    records: list[dict[str, Any]] = []
    with SequentialEngine(world) as engine:
        train(run, engine, records.append, keep_clients=(1,))
    evaluated = {record["round"]: record["test_accuracy"] for record in records if "test_accuracy" in record}
    assert list(evaluated) == [1, 3, 4, 6, 8]
    for name, round_ in {"clients-0001": 1, "round-0003": 3, "round-0006": 6, "final": 8}.items():
        saved = load_checkpoint(tmp_path / "run" / f"{name}.pt")
        assert (saved.round, saved.metrics["round"]) == (round_, round_)
        assert saved.metrics["test_accuracy"] == evaluated[round_]


def test_a_users_own_configuration_is_not_taken_for_nothing(tmp_path: Path) -> None:
    write_config(tmp_path / "config.toml", make_config({"lr": 0.3}))
    with pytest.raises(UsageError, match=r"lr \(0.3; asked for 0.1\)"):
        RunFolder(tmp_path).require(RunConfig())


def test_demo_leaves_a_run_of_the_users_alone(run: Path, tmp_path: Path) -> None:
    run.rename(tmp_path / "with-man")
    before = (tmp_path / "with-man" / "final.pt").read_bytes()
    done = flatlab("demo", "--out", ".", cwd=tmp_path)
    assert done.returncode == 2
    assert "with-man holds a run with another" in done.stderr
    assert (tmp_path / "with-man" / "final.pt").read_bytes() == before
    assert not (tmp_path / "without-man").exists()


# ------------------------------------------------------------------ metrics, lines, locks, interruptions


def test_a_run_keeps_its_log(run: Path) -> None:
    assert "round 2/2, train loss" in (run / "run.log").read_text()


@pytest.mark.long
def test_a_quick_look_says_where_it_went(run: Path, tmp_path: Path) -> None:
    assert flatlab("eigs", "run/final.pt", "--samples", "100", cwd=tmp_path).returncode == 0
    before = (run / "final.eigs.json").read_bytes()
    quick = flatlab("eigs", "run/final.pt", "--samples", "60", "--json", "e.json", cwd=tmp_path)
    assert quick.returncode == 0, quick.stderr
    assert "these numbers are in final.eigs-60.json" in quick.stderr
    assert (run / "final.eigs.json").read_bytes() == before
    saved = json.loads((run / "final.eigs-60.json").read_text())
    assert saved == json.loads((tmp_path / "e.json").read_text())
    assert saved["settings"] == {
        "samples": 60, "dtype": "float32", "k": 1, "layers": "all", "method": "lanczos", "backend": "flatlab",
        "tol": 1e-3, "max_iter": 1000, "which": "largest", "matrix": "hessian",
    }  # fmt: skip
    assert saved["fingerprint"] == load_checkpoint(run / "final.pt").fingerprint.plain()
