"""Metrics, lines, locks and interruptions of a run."""

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from flatlab.errors import UsageError
from flatlab.federated.config import make_config
from flatlab.federated.engine.base import RoundInputs, RoundOutputs
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.rounds import Run, train
from flatlab.federated.world import World
from flatlab.files import WriteError, write_text
from flatlab.grid.cell_progress import unmeasured
from flatlab.grid.plan import grid_cells, parse_grid
from flatlab.interface.run import TrainedRun
from flatlab.runs.checkpoint import Head, load_checkpoint
from flatlab.runs.folder import RunFolder
from flatlab.runs.interruption import Terminated, terminable, undisturbed
from flatlab.runs.lines import Lines
from flatlab.runs.lock import BusyError
from flatlab.runs.metrics import Metrics


def test_metrics_are_cut_at_the_byte_that_the_save_knows(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for t in (1, 2):
        metrics.append({"round": t})
    length = metrics.sync()
    metrics.append({"round": 3})
    with metrics.path.open("a") as file:
        file.write('{"rou')
    metrics.cut(2, length)
    assert [record["round"] for record in metrics.read()] == [1, 2]
    metrics.path.write_text('{"round": 1}\n')
    with pytest.raises(UsageError, match="lacks lines of the 2 rounds"):
        metrics.cut(2, length)


def test_metrics_of_older_files_are_cut_by_round(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.path.write_text('{"round": 1}\n{"round": 2}\n{"rou')
    metrics.cut(1, None)
    assert metrics.path.read_text() == '{"round": 1}\n'


def test_checkpoints_are_by_round_beyond_the_digits_of_their_names(tmp_path: Path) -> None:
    names = [f"round-{t:04d}.pt" for t in (500, 9500, 10_000, 10_500, 100_000)]
    for name in names:
        (tmp_path / name).touch()
    config = make_config({"rounds": 1})
    assert [path.name for path in TrainedRun(tmp_path, config).checkpoints] == [*names, "final.pt"]
    axes = "algorithms = ['fedavg']\npartitions = ['iid']\nseeds = [0]"
    cell = grid_cells(parse_grid(f"title = 'by round'\n[axes]\n{axes}", "grid"))[0]
    left = unmeasured("training", cell, Head(config, 1, {}, {}, {}, {}), tmp_path)
    assert [path.name for path in left] == names


def test_a_folder_that_stays_empty_goes_and_one_in_use_is_busy(tmp_path: Path) -> None:
    one, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with one.locked():
        assert other.is_busy()
        with pytest.raises(BusyError):
            other.locked().__enter__()
    assert not (tmp_path / "run").exists()
    assert not other.is_busy()


def test_lines_come_every_twentieth_and_at_the_end() -> None:
    told: list[str] = []
    lines = Lines(0, 100, told.append)
    for t in range(1, 101):
        lines({"round": t, "train_loss": 0.5, **({"test_accuracy": 0.25} if t == 1 else {})})
    assert len(told) == 20
    assert told[0].startswith("round 5/100, train loss 0.5000, test accuracy 25.00%, about ")
    assert told[-1] == "round 100/100, train loss 0.5000, test accuracy 25.00%"


def test_signals_wait_for_the_end_of_a_block() -> None:
    done = []

    def work() -> None:
        with undisturbed():
            signal.raise_signal(signal.SIGTERM)
            done.append(True)

    with terminable(), pytest.raises(Terminated):
        work()
    assert done == [True]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Interrupting(SequentialEngine):
    """An engine in whose evaluation, or training, of one round a signal comes."""

    def __init__(self, world: World, where: str, at: int) -> None:
        super().__init__(world)
        self.where, self.at, self.calls = where, at, {"run": 0, "evaluate": 0}

    def run(self, inputs: RoundInputs) -> RoundOutputs:
        self._count("run")
        return super().run(inputs)

    def evaluate(self, models: Any) -> Any:
        self._count("evaluate")
        return super().evaluate(models)

    def _count(self, where: str) -> None:
        self.calls[where] += 1
        if (where, self.calls[where]) == (self.where, self.at):
            raise Terminated


@pytest.mark.parametrize("where", ["run", "evaluate"])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_interrupted_anywhere_the_last_whole_round_is_saved(
    where: str, place: Any, toy_world: Callable[..., World], tmp_path: Path
) -> None:
    world = toy_world(algorithm="scaffold", rounds=4, eval_every=1)
    with SequentialEngine(world) as engine:
        train(Run(world, tmp_path / "whole"), engine, lambda record: None)
    with Interrupting(world, where, 3) as engine, pytest.raises(Terminated):
        train(Run(world, tmp_path / "cut", place), engine, lambda record: None, save_every=1e9)
    resumed = Run(world, tmp_path / "cut", place)
    resumed.resume()
    assert resumed.server.round == 2
    with SequentialEngine(world) as engine:
        train(resumed, engine, lambda record: None)
    one, two = (load_checkpoint(tmp_path / name / "final.pt") for name in ("whole", "cut"))
    assert all(torch.equal(value, two.state_dict[name]) for name, value in one.state_dict.items())
    assert [record["round"] for record in resumed.files.metrics.read()] == [1, 2, 3, 4]


def test_a_file_system_without_locks_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    (tmp_path / ".lock").touch()  # copied along from elsewhere
    monkeypatch.setattr(fcntl, "flock", refuse)
    folder = RunFolder(tmp_path)
    assert not folder.is_busy()
    with pytest.raises(UsageError, match=r"without locks \(flock\)"):
        folder.locked().__enter__()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_without_fsync_of_folders_keeps_what_is_written(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    broken = pytest.raises(WriteError) if number == errno.EIO else nullcontext()
    with broken:
        write_text(tmp_path / "config.toml", "rounds = 1\n")
    assert (tmp_path / "config.toml").read_text() == "rounds = 1\n"
