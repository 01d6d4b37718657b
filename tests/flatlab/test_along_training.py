"""Curvature that is followed while a run is trained, as the command line shows it."""

import json
import sys
from pathlib import Path

import pytest

from flatlab.cli.main import main
from tests.command_line import QUICK, flatlab


@pytest.mark.long
def test_curvature_is_tracked_and_shown_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("train", "--rounds", "5", "--workers", "1", "--track-eigs", "2", "--tensorboard", "--out", "run")
    done = flatlab(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    tracked = {line["round"]: line["curvature"] for line in lines if "curvature" in line}
    assert sorted(tracked) == [2, 4, 5]
    assert set(tracked[5]["layers"]) == {"fc1", "fc2", "fc3"}
    for entry in [tracked[5]["global"], *tracked[5]["layers"].values()]:
        assert entry["converged"]
        assert entry["missed"] <= 0.05
        assert entry["residual"] <= 1e-2 * abs(entry["value"])
    assert "not converged" not in done.stdout
    assert (tmp_path / "run" / "tracking.png").exists()
    # the last measurement again, of the final checkpoint, on the same samples and without a warm start
    assert flatlab("eigs", "run/final.pt", "--samples", "500", "--json", "e.json", cwd=tmp_path).returncode == 0
    again = json.loads((tmp_path / "e.json").read_text())["global"]["eigenvalues"][0]
    assert tracked[5]["global"]["value"] == pytest.approx(
        again["value"], abs=again["residual"] + tracked[5]["global"]["residual"]
    )
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert {"train/loss", "test/accuracy", "eigenvalue/network", "eigenvalue/fc1"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]


def test_tracked_eigenvalues_that_are_not_converged_are_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a tolerance that float32 does not carry."""
    monkeypatch.setattr("flatlab.measuring.probe.TOLERANCE", 1e-9)
    monkeypatch.setattr(sys, "argv", ["flatlab", "train", *QUICK, "--track-eigs", "1", "--out", str(tmp_path / "r")])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    lines = [json.loads(line)["curvature"] for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    entries = [entry for line in lines for entry in (line["global"], *line["layers"].values())]
    count = sum(not entry["converged"] for entry in entries)
    assert 0 < count == sum(entry["residual"] > 1e-9 * entry["value"] for entry in entries)
    assert f"! {count} of 8 tracked eigenvalues are not converged" in capsys.readouterr().out.replace("\n", " ")
    rows = (tmp_path / "r" / "tracking.csv").read_text().splitlines()
    assert rows[0].split(",")[-1] == "converged"
    assert sum(row.endswith(",False") for row in rows) == count
