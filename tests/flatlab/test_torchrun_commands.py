"""The commands under torchrun: two gloo processes, each with half of the samples, give the numbers of one process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flatlab.cli.main import main
from flatlab.cli.train import train_run
from flatlab.federated.config import make_config
from flatlab.federated.execution import Execution
from tests.command_line import environment

RUN = {"rounds": 2, "clients": 3, "local_epochs": 1, "hidden": (6,), "train_samples": 201}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
EXACT = ("--dtype", "float64", "--tol", "1e-6")

OWN = """
import torch

def model():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)

def data():
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(9, 3, generator=generator), torch.randint(2, (9,), generator=generator)
    return [(x[:2], y[:2]), (x[2:], y[2:])]
"""

SCRIPT = """
import json, os, sys
from torch import distributed as dist
from flatlab.cli.main import main

join = dist.init_process_group
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)

for number, words in enumerate(json.loads(sys.argv[1])):
    fresh = dist.PrefixStore(str(number), store)  # as if torchrun had been called again
    dist.init_process_group = lambda backend: join(backend, store=fresh, rank=rank, world_size=size)
    sys.argv = ["flatlab", *words]
    try:
        main()
    except SystemExit as left:
        print("LEFT", rank, left.code, flush=True)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(make_config(RUN), tmp_path_factory.mktemp("run") / "it", Execution(workers=1))


def two_processes(cwd: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *TORCHRUN, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=200, check=False)


def one_process(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["flatlab", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code


def numbers(content: Any) -> list[float]:
    """Numbers that are the same to rounding for any number of processes, in order; not what the last step decides."""
    if isinstance(content, dict):
        passed_over = (
            "seconds",
            "versions",
            "run",
            "residual",
            "error",
            "missed",
            "left_error",
            "right_error",
            "hvps",
            "sampling",
        )
        return [n for key, value in content.items() if key not in passed_over for n in numbers(value)]
    if isinstance(content, list):
        return [n for value in content for n in numbers(value)]
    return [float(content)] if isinstance(content, int | float) else []


def assert_same(folder: Path, rel: float = 1e-9) -> None:
    alone, together = (numbers(json.loads((folder / name).read_text())) for name in ("alone.json", "together.json"))
    assert len(alone) > 4
    assert together == pytest.approx(alone, rel=rel, abs=1e-12)


def test_the_first_process_alone_speaks(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("eigs", checkpoint, "--full", "--top-k", 2, *EXACT)
    one_process(monkeypatch, *words, "--json", "alone.json")
    done = two_processes(tmp_path, "-m", "flatlab", *words, "--json", "together.json", "--figure", "f")
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path)
    assert done.stdout.count("network") == 1
    assert done.stdout.count("Figure: ") == 1
    saved = json.loads(checkpoint.with_suffix(".eigs.json").read_text())
    assert saved["data"]["samples"] == 201
    assert saved == json.loads((tmp_path / "together.json").read_text())


def test_every_command_gives_the_numbers_of_one_process(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "all.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    commands: list[tuple[object, ...]] = [
        ("eigs", checkpoint, "--clients", "all", "--full", *EXACT),
        ("eigs", checkpoint, "--samples", 90, *EXACT),
        ("trace", checkpoint, "--max-probes", 20, *EXACT),
        ("trace", checkpoint, "--flatness", "--max-probes", 20, *EXACT[:2]),
        ("density", checkpoint, "--depth", 10, "--probes", 2, *EXACT[:2]),
        ("surface", checkpoint, "--points", 3, "--along", "eigenvectors", *EXACT[:2]),
        ("eigs", "--model", "mine:model", "--data", "mine:data", *EXACT),
    ]
    refused: list[tuple[object, ...]] = [
        ("eigs", checkpoint, "--samples", 1),
        ("eigs", checkpoint, "--per-batch", 20),
        ("eigs", "nothere.pt"),
        ("train", "--rounds", 1, "--out", "two"),
    ]
    lines = []
    for number, words in enumerate(commands):
        folder = tmp_path / str(number)
        one_process(monkeypatch, *words, "--json", folder / "alone.json")
        lines.append([*map(str, words), "--json", str(folder / "together.json")])
    lines += [[*map(str, words)] for words in refused]
    done = two_processes(tmp_path, "all.py", json.dumps(lines))
    assert done.returncode == 0, done.stderr
    for number, words in enumerate(commands):
        assert_same(tmp_path / str(number), rel=1e-4 if "--samples" in words else 1e-6)
    said = " ".join(done.stderr.split())
    assert "has 1 samples, too few for 2 processes" in said
    assert "run them without torchrun" in said
    assert said.count("There is no file nothere.pt") == 1
    assert said.count("flatlab train does not share its work among processes") == 1
    assert not (tmp_path / "two").exists()
    assert done.stdout.count("F holds") == 1
    for process in ("0", "1"):
        codes = [line.split()[2] for line in done.stdout.splitlines() if line.startswith(f"LEFT {process}")]
        assert codes == ["0"] * len(commands) + ["2"] * len(refused)
