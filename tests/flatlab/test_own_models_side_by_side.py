"""Checkpoints of several models and data sets of one's own in one command, each named to let it run."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flatlab import functions
from flatlab.cli.main import main
from flatlab.cli.watched_run import train_run
from flatlab.federated.config import make_config
from flatlab.federated.execution import Execution
from flatlab.functions import let_run

SIDES = """
import torch
from torch import nn

def one(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, classes))

def two(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(6, classes))

def first():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    return (x, torch.arange(20) % 3), (x, torch.arange(20) % 3)

def second():
    (x, y), _ = first()
    return (2 * x, y), (2 * x, y)
"""

PATHS = ("run-one/final.pt", "run-two/final.pt")
MODELS = ("--model", "sides:one", "--model", "sides:two")
DATASETS = ("--dataset", "sides:first", "--dataset", "sides:second")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the user's module and a run of each of its models, on a data set of its own."""
    folder = tmp_path_factory.mktemp("sides")
    (folder / "sides.py").write_text(SIDES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(functions, "_ALLOWED", set())
        let_run("sides:first", "sides:second")
        for model, dataset in (("one", "first"), ("two", "second")):
            fields = {"model": f"sides:{model}", "dataset": f"sides:{dataset}", "clients": 2, "rounds": 1}
            train_run(make_config(fields), folder / f"run-{model}", Execution(workers=1))
        yield folder
    sys.modules.pop("sides", None)


@pytest.fixture(autouse=True)
def here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setattr(functions, "_ALLOWED", set())


def flatlab(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["flatlab", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


@pytest.mark.parametrize(
    "command",
    [
        ("eigs", "--layers", "none"),
        ("trace", "--tol", "0.5"),
        ("density", "--depth", "5", "--probes", "1"),
        ("surface", "--points", "3"),
        ("verify",),
    ],
)
def test_each_that_is_named_may_run(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*command, *PATHS, *MODELS, *DATASETS, "--samples", "12", "--json", "out.json")
    assert flatlab(monkeypatch, *words) == 0
    found = json.loads(Path("out.json").read_text())["checkpoints"]
    assert [each["run"]["config"]["model"] for each in found] == ["sides:one", "sides:two"]


@pytest.mark.parametrize("command", ["eigs", "verify"])
@pytest.mark.parametrize(
    ("named", "missing"),
    [((*MODELS[2:], *DATASETS), "--model sides:one"), ((*MODELS, *DATASETS[2:]), "--dataset sides:first")],
)
def test_none_that_is_not_named_runs(
    command: str,
    named: tuple[str, ...],
    missing: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert flatlab(monkeypatch, command, *PATHS, *named, "--samples", "12") == 2
    assert " ".join(capsys.readouterr().err.split()).endswith(f"to let it run, add {missing}.")


def test_of_models_without_checkpoints_one_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flatlab(monkeypatch, "eigs", *MODELS, "--data", "sides:first") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "One model of your own is measured at a time, and --model names 2: sides:one, sides:two; keep one" in said
