"""A run knows a user's model and algorithm by name: where their code has changed since, nothing is taken for theirs."""

from pathlib import Path

import pytest

from tests.command_line import flatlab

MODEL = """
from torch import nn

def make(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes))
"""

ALGORITHM = """
from dataclasses import dataclass
from flatlab.federated.algorithms.base import Algorithm, Terms
from flatlab.federated.algorithms.fedavg import ALGORITHM as fedavg
from dataclasses import replace

def combine(round):
    w, server = fedavg.combine(round)
    return round.w + 1.0 * (w - round.w), server

ALGORITHM = replace(fedavg, name="mine", combine=combine)
"""

RUN = ("--clients", "4", "--set", "train_samples=80", "--workers", "1")


@pytest.mark.parametrize("change", [("8", "16"), ("ReLU", "Tanh"), ("64, 8)", "64, 8, bias=False)")])
def test_a_run_of_a_model_that_has_changed_is_neither_finished_nor_measured(
    change: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    line = ("train", "--model", "mine:make", "--rounds", "2", *RUN, "--out", "run")
    assert flatlab(*line, cwd=tmp_path).returncode == 0
    (tmp_path / "mine.py").write_text(MODEL + "# the same, with a remark\n")
    assert "is this very one, and is finished" in flatlab(*line, cwd=tmp_path).stderr
    (tmp_path / "mine.py").write_text(MODEL.replace(*change))
    again = flatlab(*line, cwd=tmp_path)
    assert again.returncode == 2
    assert "The model mine:make is not the one with which the run in" in again.stderr
    measured = flatlab("eigs", "run/final.pt", "--samples", "20", "--model", "mine:make", cwd=tmp_path)
    assert measured.returncode == 2
    fits = change[0] == "ReLU"
    said = "is not the one with which this checkpoint was trained" if fits else "do not fit its model"
    assert said in measured.stderr
    (tmp_path / "mine.py").write_text(MODEL)
    assert flatlab("eigs", "run/final.pt", "--samples", "20", "--model", "mine:make", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("role", "name", "code", "change"),
    [
        ("model", "mine:make", MODEL, ("ReLU", "Tanh")),
        ("algorithm", "mine:ALGORITHM", ALGORITHM, ("1.0", "0.5")),
    ],
)
def test_a_run_that_was_cut_off_is_not_gone_on_with_by_other_code(
    role: str, name: str, code: str, change: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(code)
    line = ("train", f"--{role}", name, "--rounds", "3", *RUN, "--set", "checkpoint_every=1", "--out", "run")
    assert flatlab(*line, cwd=tmp_path).returncode == 0
    changed = code.replace(*change)
    for cut_off in (False, True):
        (tmp_path / "mine.py").write_text(changed)
        again = flatlab(*line, cwd=tmp_path)
        assert again.returncode == 2
        assert f"The {role} {name} is not the one with which the run in" in again.stderr
        (tmp_path / "run" / "final.pt").unlink(missing_ok=cut_off)
    (tmp_path / "mine.py").write_text(code)
    assert flatlab(*line, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("weights", [pytest.param(True, marks=pytest.mark.long), False])
def test_a_grid_begun_with_another_model_is_not_gone_on_with(weights: bool, tmp_path: Path) -> None:
    """Nor where its results were brought here without their checkpoints."""
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "g.toml").write_text(
        'title = "g"\n[common]\nrounds = 1\nclients = 4\ntrain_samples = 80\nmodel = "mine:make"\n'
        '[axes]\nalgorithms = ["fedavg"]\nman = [false]\npartitions = ["iid"]\nseeds = [0]\n'
        "[measure]\nsamples = 20\n"
    )
    line = ("reproduce", "g.toml", "--out", "g", "--jobs", "1", "--model", "mine:make")
    assert flatlab(*line, cwd=tmp_path).returncode == 0
    (tmp_path / "g.toml").write_text((tmp_path / "g.toml").read_text().replace("seeds = [0]", "seeds = [0, 1]"))
    (tmp_path / "mine.py").write_text(MODEL.replace("ReLU", "Tanh"))
    for path in () if weights else (tmp_path / "g").glob("*/*.pt"):
        path.unlink()
    again = flatlab(*line, "--only", "fedavg-s1", cwd=tmp_path)  # the cell that was trained is another call's
    assert again.returncode == 2
    assert "The model mine:make is not the one with which the run in" in again.stderr
