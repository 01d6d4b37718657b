"""The commands under torchrun: gloo processes, each with its share of the samples, give the numbers of one process.

Four of them, whose shares are unequal or, of clients with few samples, too few for one each.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flatlab.cli.main import main
from flatlab.cli.watched_run import train_run
from flatlab.federated.config import make_config
from flatlab.federated.execution import Execution
from tests.command_line import Done, program

RUN = {"rounds": 2, "clients": 3, "local_epochs": 1, "hidden": (6,), "train_samples": 201}
FEW = {**RUN, "clients": 4, "train_samples": 10, "partition": "iid", "participation": 0.5}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
EXACT = ("--dtype", "float64", "--tol", "1e-6")
CLOSE = ("--dtype", "float64", "--tol", "1e-4")

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
    dist.init_process_group = lambda kind, **more: join(kind, store=fresh, rank=rank, world_size=size, **more)
    sys.argv = ["flatlab", *words]
    try:
        main()
    except SystemExit as left:
        with open(f"codes-{rank}", "a") as file:
            file.write(f"{left.code} ")
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(make_config(RUN), tmp_path_factory.mktemp("run") / "it", Execution(workers=1))


@pytest.fixture(scope="module")
def kept_clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the models of clients that have fewer samples than there are processes."""
    out = tmp_path_factory.mktemp("few") / "it"
    train_run(make_config(FEW), out, Execution(workers=1, keep_clients=(2,)))
    return out / "clients-0002.pt"


def processes(count: int, cwd: Path, *words: object, **variables: str) -> Done:
    return program(sys.executable, *TORCHRUN, count, *words, cwd=cwd, variables=variables)


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


def assert_same_verdicts(folder: Path) -> None:
    """Every statement has the same outcome, every interval the same lower end; the upper is where a search ends."""
    alone, together = (json.loads((folder / name).read_text()) for name in ("alone.json", "together.json"))
    assert [check["outcome"] for check in together["checks"]] == [check["outcome"] for check in alone["checks"]]
    assert len(alone["checks"]) > 10
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-9)
    for one, other in zip(alone["layers"], together["layers"], strict=True):
        assert other["norm2"] == pytest.approx(one["norm2"], rel=1e-9)
        for name in ("top", "curvature", "a1", "a2", "a3"):
            assert other[name][0] == pytest.approx(one[name][0], rel=1e-6)
            assert other[name][0] <= one[name][1] * (1 + 1e-9)
            assert one[name][0] <= other[name][1] * (1 + 1e-9)


@pytest.mark.long
def test_the_first_process_alone_speaks(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("eigs", checkpoint, "--full", "--top-k", 2, *EXACT)
    one_process(monkeypatch, *words, "--json", "alone.json")
    done = processes(2, tmp_path, "-m", "flatlab", *words, "--json", "together.json", "--figure", "f")
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path)
    assert done.stdout.count("network") == 1
    assert done.stdout.count("Figure: ") == 1
    saved = json.loads(checkpoint.with_suffix(".eigs.json").read_text())
    assert saved["data"]["samples"] == 201
    assert saved == json.loads((tmp_path / "together.json").read_text())


@pytest.mark.long
def test_every_command_gives_the_numbers_of_one_process(
    checkpoint: Path, kept_clients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = kept_clients.with_name("final.pt")
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "all.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    commands: list[tuple[object, ...]] = [
        ("eigs", checkpoint, "--clients", "all", "--full", *CLOSE),
        ("eigs", checkpoint, "--samples", 90, *CLOSE),
        ("trace", checkpoint, "--flatness", "--tol", "0.9", *CLOSE[:2]),
        ("density", checkpoint, "--depth", 8, "--probes", 1, *CLOSE[:2]),
        ("surface", checkpoint, "--points", 3, *CLOSE[:2]),
        ("eigs", "--model", "mine:model", "--data", "mine:data", *CLOSE),
        ("eigs", few, "--clients", "all", "--full", *CLOSE),
        ("eigs", few, "--samples", 3, *CLOSE),
        ("clients", kept_clients, "--full", *CLOSE, "--trace-tol", "0.5"),
        ("verify", few, "--samples", 9),
    ]
    refused: list[tuple[object, ...]] = [
        ("eigs", checkpoint, "--per-batch", 20),
        ("eigs", "nothere.pt"),
        ("train", "--rounds", 1, "--out", "two"),
        ("verify",),
    ]
    lines = []
    for number, words in enumerate(commands):
        folder = tmp_path / str(number)
        one_process(monkeypatch, *words, "--json", folder / "alone.json")
        lines.append([*map(str, words), "--json", str(folder / "together.json")])
    lines += [[*map(str, words)] for words in refused]
    done = processes(4, tmp_path, "all.py", json.dumps(lines))
    assert done.returncode == 0, done.stderr
    for number, words in enumerate(commands):
        if words[0] == "verify":
            assert_same_verdicts(tmp_path / str(number))
        else:
            assert_same(tmp_path / str(number), rel=1e-4 if "--samples" in words else 1e-6)
    said = " ".join(done.stderr.split())
    assert said.count("flatlab verify shares no work but that on checkpoints") == 1
    assert "run them without torchrun" in said
    assert said.count("There is no file nothere.pt") == 1
    assert said.count("flatlab train does not share its work among processes") == 1
    assert not (tmp_path / "two").exists()
    assert done.stdout.count("F holds") == 2  # said by the first process alone
    for process in ("0", "1", "2", "3"):
        codes = (tmp_path / f"codes-{process}").read_text().split()
        assert codes == ["0"] * len(commands) + ["2"] * len(refused)


FAILING = """
import os, signal
import torch

class Failing(torch.nn.Module):
    passes = 0

    def __init__(self):
        super().__init__()
        self.own = torch.nn.Linear(3, 2)

    def forward(self, x):
        Failing.passes += 1
        if Failing.passes > 5 and os.environ["RANK"] == "2":
            os.kill(os.getpid(), signal.Signals[os.environ["FAULT"]])
        return self.own(x)

def data():
    return torch.randn(30, 3, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2
"""


@pytest.mark.long
@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSTOP"])
def test_a_process_that_is_lost_ends_all_with_one_sentence(fault: str, tmp_path: Path) -> None:
    """Killed, it is seen at once; stopped, after the time that the others wait."""
    (tmp_path / "failing.py").write_text(FAILING)
    words = ("-m", "flatlab", "eigs", "--model", "failing:Failing", "--data", "failing:data", "--json", "e.json")
    done = processes(4, tmp_path, *words, FAULT=fault, FLATLAB_TIMEOUT="3")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("flatlab: ")]
    assert len(said) == 1, done.stderr
    assert "Another process of this measurement" in said[0]
    assert not (tmp_path / "e.json").exists()


@pytest.mark.parametrize("seconds", ["-1", "0", "soon", "nan", "inf"])
def test_a_timeout_that_is_none_is_refused(
    seconds: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")  # as torchrun would, for one process
    monkeypatch.setenv("FLATLAB_TIMEOUT", seconds)
    monkeypatch.setattr(sys, "argv", ["flatlab", "eigs", str(checkpoint)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "FLATLAB_TIMEOUT is a number of seconds above 0" in capsys.readouterr().err


UNSEEDED = """
import torch

def model():
    return torch.nn.Linear(3, 2)

def data():
    x = torch.arange(24.0).reshape(8, 3)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(8) % 2), 2, shuffle=True)

def own_numbers():
    import os
    torch.manual_seed(int(os.environ.get("RANK", 0)))
    return torch.nn.Linear(3, 2)

def own_order():
    import os
    x = torch.arange(24.0).reshape(8, 3)
    own = torch.arange(8).roll(int(os.environ.get("RANK", 0)))
    return x[own], torch.arange(8)[own] % 2
"""


@pytest.mark.long
def test_what_a_function_draws_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(UNSEEDED)

    def measured(model: str, data: str) -> Done:
        words = ("eigs", "--model", f"mine:{model}", "--data", f"mine:{data}", "--loss", "cross_entropy", *EXACT)
        return processes(2, tmp_path, "-m", "flatlab", *words, "--json", "e.json")

    done = measured("model", "data")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "e.json").read_text())["data"]["samples"] == 8
    for model, data, said in (
        ("own_numbers", "data", "The model mine:own_numbers has other parameters in each process"),
        (
            "model",
            "own_order",
            "The data of mine:own_order are other ones, or in another order, in each pass or process",
        ),
    ):
        done = measured(model, data)
        assert done.returncode != 0
        assert said in done.stderr
