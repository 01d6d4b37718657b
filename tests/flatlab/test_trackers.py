"""Trackers: what they are told, that none of them can stop a run, and the real packages, offline."""

import json
import struct
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flatlab.cli.watched_run import train_run
from flatlab.errors import UsageError
from flatlab.federated.config import make_config
from flatlab.federated.execution import Execution
from flatlab.grid.cells import CellWork
from flatlab.interface.run import train
from flatlab.runs.folder import RunFolder
from flatlab.trackers import TRACKERS
from flatlab.trackers.base import Tracked
from flatlab.trackers.follower import followed, read_trackers
from flatlab.trackers.numbers import of_round
from tests.command_line import wait_until
from tests.flatlab.test_grid_running import cells_of

SMALL: dict[str, Any] = {
    "rounds": 3, "clients": 3, "local_epochs": 1, "hidden": (6,), "train_samples": 90, "test_samples": 30,
}  # fmt: skip
ONE = Execution(workers=1, track_eigs=3)

TAGS = {
    "train/loss", "train/learning_rate", "train/images_per_second", "test/accuracy", "test/loss",
    "test/accuracy_server", "activation/norm2", "activation/norm2_layer1",
    "eigenvalue/network", "eigenvalue/fc1", "eigenvalue/fc2",
}  # fmt: skip


class Kept:
    """A tracker that keeps what it is told, in this process."""

    told: list[Any]

    def start(self, run: Tracked) -> str:
        Kept.told = [run]
        return "kept-1"

    def log(self, numbers: dict[str, float], round_: int) -> None:
        Kept.told.append((round_, dict(numbers)))

    def finish(self) -> None:
        Kept.told.append("finished")


def failing(stage: str) -> type:
    """A tracker that fails, or hangs, at `stage`."""

    class Failing:
        def _come_to(self, here: str) -> None:
            if stage == here:
                raise ConnectionError("the network is gone.\nsecond line")
            if stage == f"leave at {here}":
                raise SystemExit(3)
            if stage == f"hang at {here}":
                time.sleep(3600)

        def start(self, run: Tracked) -> str:
            self._come_to("start")
            return "x"

        def log(self, numbers: dict[str, float], round_: int) -> None:
            self._come_to("log")

        def finish(self) -> None:
            self._come_to("finish")

    return Failing


def install(patch: pytest.MonkeyPatch, name: str, tracker: type) -> None:
    """Enter a tracker of this test."""
    module = ModuleType(f"tracker_{name}")
    vars(module)["Tracker"] = tracker
    patch.setitem(sys.modules, module.__name__, module)
    patch.setitem(TRACKERS, name, module.__name__)


def test_a_tracker_is_told_everything_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "kept", Kept)
    config = make_config(SMALL)
    train_run(config, tmp_path / "group" / "run", ONE, track=["kept", "kept"])
    run, *rounds, end = Kept.told
    assert (run.name, run.group, run.completed, run.known_as) == ("run", "group", 0, None)
    assert run.settings == config.model_copy(update={"model": "mlp"}).plain()
    assert end == "finished"
    records = RunFolder(tmp_path / "group" / "run").metrics.read()
    assert rounds == [(record["round"], of_round(record, "server")) for record in records]
    assert set(rounds[-1][1]) == TAGS
    evaluation, curvature = records[-1]["models"]["server"], records[-1]["curvature"]
    assert rounds[-1][1]["activation/norm2_layer1"] == evaluation["activation_norms"][0]
    assert rounds[-1][1]["eigenvalue/fc2"] == curvature["layers"]["fc2"]["value"]

    # gone on with: it is told as what it knows the run; begun anew, it is not
    with followed(("kept",), tmp_path / "group" / "run", {}, 3, print):
        pass
    assert Kept.told[0].known_as == "kept-1"
    with followed(("kept",), tmp_path / "group" / "run", {}, 0, print):
        pass
    assert Kept.told[0].known_as is None


def test_what_did_not_converge_is_called_so() -> None:
    value = {"value": 2.0, "converged": False}
    record = {"round": 1, "curvature": {"global": value, "layers": {"fc1": {**value, "converged": True}}}}
    assert of_round(record, "server") == {"eigenvalue_not_converged/network": 2.0, "eigenvalue/fc1": 2.0}


@pytest.mark.parametrize("stage", ["start", "log", "finish", "leave at start", "leave at log"])
def test_a_tracker_that_fails_is_one_sentence_in_the_log(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, "faulty", failing(stage))
    install(monkeypatch, "kept", Kept)
    final = train_run(make_config(SMALL), tmp_path / "run", Execution(workers=1), track=["faulty", "kept"])
    assert final.exists()
    reason = "it wanted to leave" if "leave" in stage else "ConnectionError: the network is gone"
    said = f"faulty no longer tracks this run ({reason}); the run goes on, and metrics.jsonl has it all."
    assert (tmp_path / "run" / "run.log").read_text().count(said) == 1
    assert " ".join(capsys.readouterr().err.split()).count(said) == 1
    assert [told[0] for told in Kept.told[1:-1]] == [1, 2, 3]


@pytest.mark.parametrize("stage", ["hang at start", "hang at log", "hang at finish"])
def test_a_tracker_that_hangs_holds_a_run_up_for_a_while_at_most(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "faulty", failing(stage))
    monkeypatch.setattr("flatlab.trackers.follower.FINISH_SECONDS", 0.2)
    told: list[str] = []
    with followed(("faulty",), tmp_path, {}, 0, told.append) as log:
        log({"a": 1.0}, 1)
    assert told == ["faulty did not take everything within 0 s; metrics.jsonl has it all."]


def test_a_damaged_list_of_names_begins_the_tracking_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "kept", Kept)
    for content in (b"{", b"\xff", b"[1]", b'{"kept": 3}', b"null"):
        (tmp_path / "trackers.json").write_bytes(content)
        with followed(("kept",), tmp_path, {}, 1, print):
            pass
        assert Kept.told[0].known_as is None
        assert json.loads((tmp_path / "trackers.json").read_text()) == {"kept": "kept-1"}


@pytest.mark.parametrize("name", list(TRACKERS))
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_done(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = {"tensorboard": "torch.utils.tensorboard"}.get(name, name)
    monkeypatch.delitem(sys.modules, TRACKERS[name], raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"--track {name} needs .*pip install 'flatlab\[{name}\]'"):
        train(out=tmp_path / "run", rounds=1, track=(name,), progress=False)
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(UsageError, match="--track is one of tensorboard, wandb, mlflow, trackio, not 'neptune'"):
        read_trackers(["neptune"])


def test_a_cell_of_a_grid_is_tracked_with_what_is_measured_of_it(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cell = cells_of(rounds=2)[1]
    CellWork(None, "cpu", track=("tensorboard",))(cell, tmp_path / cell.name)
    events = EventAccumulator(str(tmp_path / cell.name))
    events.Reload()
    assert [event.step for event in events.Scalars("activation/norm2_layer1")] == [1, 2]
    measured = json.loads((tmp_path / cell.name / "final.eigs.json").read_text())
    (top,) = events.Scalars("measured/eigenvalue/network")
    assert (top.step, top.value) == (2, pytest.approx(measured["global"]["eigenvalues"][0]["value"]))
    assert {"measured/trace", "measured/eigenvalue/fc1", "measured/input_norm2/fc1"} <= set(events.Tags()["scalars"])


def tracked_twice(name: str, folder: Path) -> None:
    """Train with the tracker, and then again as if the last round had been undone by a crash."""
    train(**SMALL, out=folder, workers=1, track_eigs=3, track=(name,), progress=False)
    last = RunFolder(folder).metrics.read()[-1]
    with followed((name,), folder, {}, 2, print) as log:
        log(of_round(last, "server"), 3)
    assert not (folder / "run.log").exists()  # where a failure would stand


@pytest.mark.long
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked_twice("wandb", tmp_path / "run")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    # a process of its own writes the files
    wait_until(lambda: all(any(r.HasField("exit") for r in _wandb_records(file)) for file in files))
    runs = [list(_wandb_records(file)) for file in files]
    begun = [record.run for records in runs for record in records if record.HasField("run")]
    assert len({run.run_id for run in begun}) == 1
    assert {(run.project, run.display_name) for run in begun} == {("flatlab", "run")}
    rows = [record.history for records in runs for record in records if record.HasField("history")]
    told = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in rows]
    assert [row["round"] for row in told] == [1, 2, 3, 3]
    assert set(told[2]) >= TAGS
    assert {k: v for k, v in told[3].items() if k in TAGS} == {k: v for k, v in told[2].items() if k in TAGS}


def _wandb_records(path: Path) -> Iterator[Any]:
    """The records of a file of Weights & Biases, which is a log of LevelDB's form after a header of 7 bytes."""
    proto: Any = import_module("wandb.proto.wandb_internal_pb2")
    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        if place + 7 + length > len(content):
            return
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last piece
            record = proto.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_mlflow_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    tracked_twice("mlflow", tmp_path / "run")
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("flatlab")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["algorithm"] == "fedavg"
    assert set(run.data.metrics) == TAGS
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 3]


def test_trackio_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    tracked_twice("trackio", tmp_path / "group" / "run")
    assert SQLiteStorage.get_runs("flatlab") == ["group/run"]
    rows = SQLiteStorage.get_logs("flatlab", "group/run")
    assert [row["step"] for row in rows] == [1, 2, 3, 3]
    assert set(rows[2]) >= TAGS
