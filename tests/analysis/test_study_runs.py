"""Which runs a study compares: parts of MAN stand beside runs without it, what is left over is named."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.theory.study import LayerMeasures, Measures, Subject, conclude, unpaired
from flatlab.cli.watched_run import train_run
from flatlab.federated.config import make_config
from flatlab.federated.execution import Execution
from flatlab.runs.checkpoint import load_checkpoint, save_checkpoint
from flatlab.runs.saved import read_study
from tests.analysis.test_theory_command import RUN, flatlab


def subject(zeta: float, seed: int, top: float, *parts: str, zeta_logits: float = 0.0, group: str = "{}") -> Subject:
    layers = [LayerMeasures(name, top, 0.0, 1.0, 1.0) for name in ("fc1", "fc2")]
    measures = Measures(0.1, top, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, layers)
    name = f"{zeta}-{zeta_logits}-{''.join(parts)}-{seed}-{group}"
    return Subject(name, group, zeta, zeta_logits, seed, 60, 0.9, measures, parts)


def test_man_in_some_layers_is_a_setting_of_its_own_beside_runs_without_man() -> None:
    tops = {(0.0, ()): 8.0, (0.1, ()): 4.0, (0.1, ("fc1",)): 2.0}
    runs = [subject(zeta, seed, top + seed / 10, *parts) for (zeta, parts), top in tops.items() for seed in range(4)]
    (verdict,) = (v for v in conclude(runs) if v.claim.quantity == "λmax of the network")
    effects = {comparison.setting: comparison.effect for comparison in verdict.comparisons}
    assert effects == {"ζ = 0.1": pytest.approx(0.51, abs=0.01), "ζ = 0.1, fc1": pytest.approx(0.26, abs=0.01)}
    assert unpaired(runs) == []


def test_logits_beside_man_are_compared_with_the_same_man_alone() -> None:
    both = [subject(0.1, seed, 3.0 + seed / 10, "fc1", zeta_logits=2.0) for seed in range(4)]
    same = [subject(0.1, seed, 6.0 + seed / 10, "fc1") for seed in range(4)]
    others = [subject(0.1, seed, 60.0) for seed in range(4)]
    found = [v for v in conclude([*both, *same, *others]) if v.claim.quantity == "λmax of the network"]
    (verdict,) = (v for v in found if v.contrast.startswith("the logits penalised beside MAN"))
    assert [c.effect for c in verdict.comparisons] == [pytest.approx(0.51, abs=0.01)]
    assert unpaired([*both, *same, *others]) == [run.checkpoint for run in others]


def test_what_stands_beside_no_other_is_named() -> None:
    runs = [subject(0.0, 0, 8.0), subject(0.1, 0, 4.0), subject(0.1, 1, 4.0), subject(0.1, 0, 4.0, group="other")]
    assert unpaired(runs) == [runs[2].checkpoint, runs[3].checkpoint]


def test_the_command_pairs_parts_of_man_and_leaves_another_study_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = load_checkpoint(train_run(make_config(RUN), tmp_path / "trained", Execution(workers=1)))

    def saved(name: str, **fields: Any) -> Path:
        path = tmp_path / name / "final.pt"
        path.parent.mkdir()
        save_checkpoint(path, replace(own, config=own.config.model_copy(update=fields)))
        return path

    runs = [saved("plain"), saved("man", man=True), saved("part", man=True, man_layers=("fc1",)), saved("lr", lr=0.2)]
    words = ("verify", "--study", "--samples", 20, "--out", tmp_path)
    assert flatlab(monkeypatch, *words, *runs) in (0, 3)
    assert f"{runs[3]} is compared with none" in " ".join(capsys.readouterr().err.split())
    first = read_study(tmp_path / "study.json")
    settings = {comparison["setting"] for verdict in first["verdicts"] for comparison in verdict["comparisons"]}
    assert settings == {"ζ = 0.15", "ζ = 0.15, fc1"}
    (tmp_path / "b").mkdir()
    others = [saved("b/plain", lr=0.3), saved("b/man", lr=0.3, man=True)]  # whose folders are called alike
    assert flatlab(monkeypatch, *words, *others) == 2
    assert "is a study of other runs: name another folder with --out" in capsys.readouterr().err
    assert flatlab(monkeypatch, "verify", "--study", "--out", tmp_path) == 2  # the toys'
    assert read_study(tmp_path / "study.json") == first
    moved = tmp_path / "moved"  # with the study beside its runs, and named from elsewhere
    shutil.copytree(tmp_path, moved, ignore=shutil.ignore_patterns("moved", "trained"))
    monkeypatch.chdir(moved)
    again = ("verify", "--study", "--samples", 20, "--out", ".", "plain/final.pt", "man/final.pt")
    assert flatlab(monkeypatch, *again) in (0, 3)
    assert flatlab(monkeypatch, *words, *runs[:2]) in (0, 3)  # fewer of the same are no other study
