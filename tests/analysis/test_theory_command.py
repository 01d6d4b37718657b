"""`flatlab verify` as a user meets it: what it prints and writes, how it ends; and the figures from what it wrote."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.suffix import Suffix
from analysis.theory import battery
from analysis.theory.dense import DenseLayer
from analysis.theory.statements import STATEMENTS
from flatlab.cli.main import main
from flatlab.cli.watched_run import train_run
from flatlab.federated.config import make_config
from flatlab.federated.execution import Execution
from flatlab.runs.checkpoint import load_checkpoint, save_checkpoint

RUN = {"rounds": 2, "clients": 4, "local_epochs": 1, "hidden": (8, 6), "train_samples": 300}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return train_run(make_config(RUN), folder / "digits", Execution(workers=1))


def flatlab(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run the entry point in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["flatlab", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def assert_drawn(folder: Path, name: str, rows: int) -> list[dict[str, str]]:
    assert (folder / f"{name}.png").stat().st_size > 5000
    assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    with (folder / f"{name}.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == rows
    return table


def test_a_checkpoint(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    code = flatlab(monkeypatch, "verify", checkpoint, "--samples", 100, "--figures", tmp_path)
    said = capsys.readouterr().out
    assert code == 0
    assert "100 of 300 training samples, float64" in said
    for statement in ("K", "A1", "A2", "A3", "P"):
        assert f"\n{statement:6} " in said
    assert "FAILS" not in said
    saved = json.loads(checkpoint.with_suffix(".verify.json").read_text())
    assert saved["data"]["samples"] == 100
    assert flatlab(monkeypatch, "eigs", checkpoint, "--samples", 100, "--dtype", "float64", "--layers", "none") == 0
    assert saved["loss"] == json.loads(checkpoint.with_suffix(".eigs.json").read_text())["loss"]  # on the same samples
    assert [layer["name"] for layer in saved["layers"]] == ["fc1", "fc2", "fc3"]
    for layer in saved["layers"]:
        assert layer["top"][1] <= layer["a1"][0] <= layer["a2"][1] <= layer["a3"][1] * 1.0001
    assert {check["statement"] for check in saved["checks"]} == set(STATEMENTS)
    assert saved["run"]["config"]["clients"] == 4
    rows = assert_drawn(tmp_path, "theory-chain", 12)
    assert float(rows[0]["low"]) == saved["layers"][0]["top"][0]


def test_a_wrong_product_ends_with_exit_code_1(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Suffix.curve
    monkeypatch.setattr(Suffix, "curve", lambda self, u: 1.01 * right(self, u))
    assert flatlab(monkeypatch, "verify", checkpoint, "--samples", 50) == 1
    said = capsys.readouterr()
    assert "FAILS in fc1, fc2, fc3" in said.out
    assert "Statement B must hold in layer fc1 and does not" in said.err


@pytest.fixture
def small_battery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer and smaller toys."""
    settings = {
        "DEPTHS": (1, 2),
        "WIDTHS": (4,),
        "SEEDS": (0,),
        "STEPS": 30,
        "MOMENTS": (0, 50),
        "SHIFT_STEPS": 50,
        "SHIFT_SEEDS": (0,),
    }
    for name, value in settings.items():
        monkeypatch.setattr(battery, name, value)


@pytest.mark.long
@pytest.mark.usefixtures("small_battery")
def test_toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert flatlab(monkeypatch, "verify", "--json", tmp_path / "toys.json", "--figures", tmp_path) == 0
    said = capsys.readouterr().out
    assert "12 toy networks" in said
    assert "S1 fails in" in said
    saved = json.loads((tmp_path / "toys.json").read_text())
    claimed = {row["statement"]: row for row in saved["statements"] if row["claimed"]}
    assert all(row["fails"] == 0 for row in claimed.values())
    assert claimed["K"]["cases"] == 6 * 2 + 6 * 3
    assert_drawn(tmp_path, "theory-slack", 2 * 3)
    assert_drawn(tmp_path, "theory-shift", 8 * 5 + 4 * 3)


@pytest.mark.long
@pytest.mark.usefixtures("small_battery")
def test_a_broken_bound_on_toys_ends_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A1 and A2 with a tenth of the curvature."""
    right = DenseLayer.tops.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(DenseLayer, "tops", property(lambda layer: right(layer) / 10))
    assert flatlab(monkeypatch, "verify") == 1
    said = capsys.readouterr()
    assert "12 toy networks" in said.out
    assert "Statement A1 must hold in layer fc1 and does not" in said.err


STUDY = ("--seeds", 3, "--rounds", 1, "--zetas", "0.5", "--zeta-logits", 0, "--samples", 200)


@pytest.mark.long
def test_a_study_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    code = flatlab(monkeypatch, "verify", "--study", "--out", out, *STUDY, "--figures", tmp_path)
    first = json.loads((out / "study.json").read_text())
    doubts = [comparison["doubt"] for verdict in first["verdicts"] for comparison in verdict["comparisons"]]
    assert code == (3 if "!" in doubts else 0)  # some traces stay just above the tolerance
    said = capsys.readouterr().out
    assert "3 pairs of runs" in said
    assert len(first["subjects"]) == 3 * 2
    quantities = {verdict["claim"]["quantity"] for verdict in first["verdicts"]}
    assert {"λmax of the network", "λmax of fc1", "trace", "test accuracy", "mean |a|² after fc2"} <= quantities
    rows = assert_drawn(tmp_path, "theory-scatter", 3 * 2 * 3)
    assert {row["layer"] for row in rows} == {"fc1", "fc2", "fc3"}
    rows = assert_drawn(tmp_path, "theory-heatmap", 2 * 4)
    assert [float(row["ratio"]) for row in rows if row["zeta"] == "0.0"] == [1.0] * 4

    kept = out / "zeta-0-logits-0-s0" / "final.pt"
    lost = out / "zeta-0.5-logits-0-s1"
    written = kept.stat().st_mtime_ns
    for name in ("final.pt", "final.measures.json", "resume.pt"):
        (lost / name).unlink()
    assert flatlab(monkeypatch, "verify", "--study", "--out", out, *STUDY) == code
    again = json.loads((out / "study.json").read_text())
    assert kept.stat().st_mtime_ns == written
    assert again["subjects"] == first["subjects"]

    checkpoints = sorted(out.glob("*/final.pt"))
    assert (
        flatlab(monkeypatch, "verify", "--study", "--out", tmp_path / "other", "--samples", 200, *checkpoints) == code
    )
    given = json.loads((tmp_path / "other" / "study.json").read_text())
    assert given["verdicts"] == first["verdicts"]

    other = ("--seeds", 3, "--rounds", 3, "--zetas", "0.5")
    assert flatlab(monkeypatch, "verify", "--study", "--out", out, *other) == 2
    assert "holds a run with another rounds (1; asked for 3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--study", "--zetas", "0.1,no"), "--zetas are positive numbers separated by commas"),
        (("--study", "--zetas", "-1"), "--zetas are positive numbers"),
        (("nowhere.pt",), "There is no file nowhere.pt"),
        (("--study", "nowhere.pt"), "There is no file nowhere.pt"),
    ],
)
def test_bad_input_is_one_sentence(
    words: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flatlab(monkeypatch, "verify", *words) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_a_study_of_runs_without_partners_says_so(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flatlab(monkeypatch, "verify", "--study", checkpoint, "--out", tmp_path, "--samples", 50) == 2
    assert "There is nothing to compare" in capsys.readouterr().err
    with_man = load_checkpoint(checkpoint)
    config = with_man.config.model_copy(update={"man": True})
    save_checkpoint(tmp_path / "earlier.pt", replace(with_man, config=config, round=1))  # the other is of round 2
    words = ("verify", "--study", checkpoint, tmp_path / "earlier.pt", "--out", tmp_path, "--samples", 50)
    assert flatlab(monkeypatch, *words) == 2
    assert "with the same seed and round" in " ".join(capsys.readouterr().err.split())
    assert not list(checkpoint.parent.glob("*.measures.json"))  # said before anything is measured


def test_a_study_refuses_one_run_twice_and_other_data_under_one_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = load_checkpoint(checkpoint)
    other = tmp_path / "other.pt"
    for saved, said in (
        (own, "are of the same run, of the same seed and round"),
        (replace(own, data="0" * 16, config=own.config.model_copy(update={"man": True})), "on different images"),
    ):
        save_checkpoint(other, saved)
        assert flatlab(monkeypatch, "verify", "--study", checkpoint, other, "--out", tmp_path) == 2
        error = capsys.readouterr().err
        assert f"{checkpoint} and {other} " in error
        assert said in error
    assert flatlab(monkeypatch, "verify", "--study", checkpoint, checkpoint, "--out", tmp_path) == 2
    assert not (tmp_path / "study.json").exists()
