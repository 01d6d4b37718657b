"""The command line, as a user meets it: a subprocess, its output, its files and its exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

QUICK = ("--rounds", "2", "--clients", "6", "--set", "local_epochs=1", "--workers", "1")


def flatlab(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flatlab", *words]
    environment = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_help_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys, flatlab.cli; sys.argv = ['flatlab', '--help']\ntry: flatlab.cli.main()\nexcept SystemExit: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert "train" in done.stdout
    assert done.stdout.rstrip().endswith("False")


def test_train_writes_a_run_and_says_what_comes_next(tmp_path: Path) -> None:
    done = flatlab("train", "--man", "--zeta", "0.05", "--json", "r.json", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "checkpoints" / "digits-fedavg-man-s0"
    assert "flatlab eigs checkpoints/digits-fedavg-man-s0/final.pt" in done.stdout
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
    assert again.returncode == 2
    assert "already holds a run" in again.stderr

    same = flatlab("train", "--config", str(folder / "config.toml"), "--out", "copy", "--workers", "2", cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    one, two = (torch.load(path, weights_only=True) for path in (folder / "final.pt", tmp_path / "copy" / "final.pt"))
    assert one["config"] == two["config"]
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_and_leaves_no_process(how: signal.Signals, tmp_path: Path) -> None:
    words = ["train", "--rounds", "100000", "--workers", "2", "--save-every", "0.2", "--out", "run"]
    command = [sys.executable, "-m", "flatlab", *words]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        _wait_for(tmp_path / "run" / "resume.pt")
        os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
        _, stderr = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "flatlab train --resume --out run" in stderr
        assert "Traceback" not in stderr
    deadline = time.monotonic() + 20
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(process.pid)
    resumed = flatlab("train", "--resume", "--out", "run", "--rounds", "7", cwd=tmp_path)
    assert resumed.returncode == 2
    assert "has another rounds (100000)" in resumed.stderr


def test_bad_input_is_one_sentence_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("rounds = 'ten'\n")
    (tmp_path / "unknown.toml").write_text("raunds = 10\n")
    cases: list[tuple[tuple[str, ...], int, str]] = [
        (("--zeta", "0.1"), 2, "add --man"),
        (("--delta", "0"), 2, "delta = 0.0 does not fit"),
        (("--rounds", "0"), 2, "rounds = 0 does not fit"),
        (("--participation", "1.5"), 2, "participation = 1.5 does not fit"),
        (("--clients", "99999"), 2, "99999 clients cannot share"),
        (("--algorithm", "fedfoo"), 2, "no such algorithm"),
        (("--config", "bad.toml"), 2, "rounds = 'ten' does not fit"),
        (("--config", "unknown.toml"), 2, "Unknown field 'raunds' in unknown.toml"),
        (("--set", "batch_size"), 2, "is not FIELD=VALUE"),
        (("--set", "hyper.rho=1"), 2, "no hyperparameter 'rho'"),
        (("--preset", "mnist"), 2, "There is no preset 'mnist'"),
        (("--model", "nowhere:net"), 2, "nowhere"),
        (("--dataset", "./nothing"), 2, "nothing"),
        (("--state", "cloud"), 2, "memory or disk"),
        (("--resume", "--out", "never"), 2, "no run to resume in never"),
        (("--lr", "1e30", *QUICK), 1, "diverged in round 1 at client"),
        (("--workers", "0"), 2, "--workers"),
    ]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda case: flatlab("train", *case[0], cwd=tmp_path), cases))
    for (words, code, message), result in zip(cases, done, strict=True):
        assert result.returncode == code, (words, result.stderr)
        assert message in " ".join(result.stderr.split()), (words, result.stderr)
        assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("*.pt"))


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = flatlab("--debug", "train", "--rounds", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr


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


def _wait_for(path: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.05)


def _alive(session: int) -> bool:
    """Whether any process of the session that the run started is left."""
    done = subprocess.run(["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True, check=False)
    return bool(done.stdout.split())
