"""`train` as a user calls it: runs, interruptions, splits and presets."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.command_line import QUICK, SECONDS, flatlab, is_left, wait_until


def test_train_writes_a_run_and_says_what_comes_next(tmp_path: Path) -> None:
    done = flatlab("train", "--man", "--zeta", "0.05", "--json", "r.json", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "checkpoints" / "digits-fedavg-man-zeta0.05-s0"
    assert "flatlab eigs checkpoints/digits-fedavg-man-zeta0.05-s0/final.pt" in done.stdout
    assert "fedavg + MAN (zeta 0.05) on digits" in done.stdout
    names = {path.name for path in folder.iterdir()}
    assert {"config.toml", "metrics.jsonl", "final.pt", "resume.pt"} <= names
    result = json.loads((tmp_path / "r.json").read_text())
    assert set(result) == {
        "checkpoint", "rounds", "test_accuracy", "train_loss", "seconds", "images_per_second"
    }  # fmt: skip
    assert result["rounds"] == 2
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2

    again = flatlab("train", "--man", "--zeta", "0.05", *QUICK, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "is this very one, and is finished" in again.stderr

    same = flatlab("train", "--config", str(folder / "config.toml"), "--out", "copy", "--workers", "2", cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    one, two = (torch.load(path, weights_only=True) for path in (folder / "final.pt", tmp_path / "copy" / "final.pt"))
    assert one["config"] == two["config"]
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name])


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_goes_on_and_leaves_no_process(how: signal.Signals, tmp_path: Path) -> None:
    words = ["train", "--rounds", "100000", "--workers", "2", "--save-every", "0.2", "--out", "run"]
    command = [sys.executable, "-m", "flatlab", *words]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_until((tmp_path / "run" / "resume.pt").exists, process)
        process.kill() if how == signal.SIGKILL else os.killpg(process.pid, how)  # a batch system signals every process
        _, stderr = process.communicate(timeout=SECONDS)
    if how != signal.SIGKILL:
        assert process.returncode == 128 + how
        assert "flatlab train --resume --out run" in stderr
        assert "Traceback" not in stderr
    wait_until(lambda: not is_left(process.pid))
    resumed = flatlab("train", "--resume", "--out", "run", "--rounds", "7", cwd=tmp_path)
    assert resumed.returncode == 2
    assert "holds a run with another rounds (100000; asked for 7)" in resumed.stderr


@pytest.mark.long
@pytest.mark.shared
def test_two_rounds_on_real_cifar100(shared_datasets: Path, tmp_path: Path) -> None:
    done = flatlab(
        "train", "--preset", "cifar100-iid", "--man", "--rounds", "2", "--set", "train_samples=2000",
        "--set", "test_samples=500", "--set", "local_epochs=1",
        "--data-root", str(shared_datasets), "--out", "run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cifar100" in done.stdout
    measured = flatlab(
        "eigs",
        "run/final.pt",
        "--samples",
        "20",
        "--tol",
        "1e-2",
        "--data-root",
        str(shared_datasets),
        "--json",
        "e.json",
        cwd=tmp_path,
    )
    assert measured.returncode == 0, measured.stderr
    names = [layer["name"] for layer in json.loads((tmp_path / "e.json").read_text())["layers"]]
    assert names == ["conv1", "conv2", "fc1", "fc2", "fc3"]


def test_the_split_can_be_looked_at(tmp_path: Path) -> None:
    done = flatlab("train", "--show-split", "--clients", "5", "--delta", "0.1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Dirichlet(0.1)" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert len(rows) == 5
    assert not (tmp_path / "checkpoints").exists()


def test_a_preset_can_be_printed_edited_and_used(tmp_path: Path) -> None:
    listed = flatlab("presets", cwd=tmp_path)
    assert "tiny-imagenet-iid with MAN: rho 0.01" in listed.stdout
    printed = flatlab("presets", "cifar100-dir0.3", "--algorithm", "feddyn", "--man", cwd=tmp_path)
    assert printed.returncode == 0
    text = printed.stdout.replace('dataset = "cifar100"', 'dataset = "digits"').replace("rounds = 500", "rounds = 1")
    (tmp_path / "run.toml").write_text(text)
    done = flatlab("train", "--config", "run.toml", "--out", "run", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = torch.load(tmp_path / "run" / "final.pt", weights_only=True)["config"]
    assert (config["algorithm"], config["hyper"], config["man"], config["zeta"]) == (
        "feddyn",
        {"alpha": 0.01},
        True,
        0.15,
    )
