"""A run that is killed at any moment ends, once resumed, bit for bit as if nothing had happened."""

import fcntl
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from flatlab.errors import UsageError
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.config_file import write_config
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.rounds import Run, train
from flatlab.federated.state import Place
from flatlab.federated.world import World
from flatlab.runs.checkpoint import load_checkpoint
from flatlab.runs.folder import RunFolder

FILE_EVENTS = ("open", "os.rename", "os.remove")
TIMES = ("seconds", "images_per_second", "evaluation_seconds")


def carry_on(world: World, folder: Path, place: Place, *, resume: bool) -> None:
    """What `flatlab train --save-every 0` does in its process."""
    with RunFolder(folder).locked():
        run = Run(world, folder, place)
        if resume:
            run.resume()
        else:
            run.begin()
        with SequentialEngine(world) as engine:
            train(run, engine, lambda record: None, save_every=0)


def outcome(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    checkpoint = load_checkpoint(folder / "final.pt")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    states = {"reported": checkpoint.state_dict, **checkpoint.models}
    return states, [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_same_outcome(one: Path, other: Path) -> None:
    (states, metrics), (theirs, their_metrics) = outcome(one), outcome(other)
    assert metrics == their_metrics
    assert states.keys() == theirs.keys()
    for name, state in states.items():
        for key, value in state.items():
            assert torch.equal(value, theirs[name][key]), (name, key)


def die_at(event: int) -> None:
    """Kill this process, as kill -9 does, just before its `event`-th operation on a file."""
    count = 0

    def hook(name: str, arguments: object) -> None:
        nonlocal count
        if name in FILE_EVENTS:
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def doomed(event: int, *arguments: Any, **keywords: Any) -> None:
    torch.set_num_threads(1)
    die_at(event)
    carry_on(*arguments, **keywords)


SHORT = (
    ("scaffold", "memory"),
    ("feddc", "disk"),
    ("fedsmoo", "disk"),  # vectors that change within a round
    ("fedwmsam", "memory"),  # a number of the server's
    ("fedgf", "disk"),  # vectors of another length
)
LONG = [
    pytest.param(*each, marks=pytest.mark.long) for each in product(ALGORITHMS, ("memory", "disk")) if each not in SHORT
]


@pytest.mark.parametrize(("name", "place"), [*SHORT, *LONG])
def test_killed_at_random_moments(name: str, place: Place, toy_world: Callable[..., World], tmp_path: Path) -> None:
    world = toy_world(algorithm=name, man=True, rounds=6, eval_every=3, checkpoint_every=4, swa_start=0.3, swa_every=2)
    carry_on(world, tmp_path / "whole", place, resume=False)

    moments = random.Random(f"{name} {place}")
    context = multiprocessing.get_context("fork")
    folder = tmp_path / "killed"
    for attempt in range(7):
        event = moments.randint(3, 40)  # the whole run makes 45 to 125 such operations
        keywords = {"resume": attempt > 0}
        child = context.Process(target=doomed, args=(event, world, folder, place), kwargs=keywords)
        child.start()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        assert attempt > 0 or child.exitcode == -signal.SIGKILL
    carry_on(world, folder, place, resume=True)
    assert_same_outcome(tmp_path / "whole", folder)
    assert not list(folder.rglob("*.part"))


def leave_a_program(folder: Path) -> None:
    """Be killed, and leave a program that still holds the lock: as one does that is just being started, like git."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    subprocess.Popen(["sleep", "0.3"], pass_fds=[lock])
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_can_be_resumed_at_once(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=leave_a_program, args=(tmp_path,))
    child.start()
    child.join()
    assert RunFolder(tmp_path).is_busy()
    with RunFolder(tmp_path).locked():
        pass


def test_whether_a_folder_is_held_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        assert folder.is_busy()
        (folder.path / "config.toml").touch()  # or the folder would go with the lock
    monkeypatch.setattr(RunFolder, "locked", None)
    assert not folder.is_busy()
    (folder.path / "config.toml").unlink()
    assert not folder.is_busy()
    assert [path.name for path in folder.path.iterdir()] == [".lock"]


def test_a_resumed_run_that_was_never_saved_starts_again(toy_world: Callable[..., World], tmp_path: Path) -> None:
    world = toy_world(rounds=3)
    carry_on(world, tmp_path / "a", "memory", resume=False)
    carry_on(world, tmp_path / "b", "memory", resume=True)
    assert_same_outcome(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("gone", [False, True])
def test_a_state_saved_with_another_configuration_is_not_gone_on_with(
    gone: bool, toy_world: Callable[..., World], tmp_path: Path
) -> None:
    def cut_off(record: dict[str, Any]) -> None:
        if record["round"] == 2:
            raise KeyboardInterrupt

    world = toy_world(rounds=3)
    with SequentialEngine(world) as engine, pytest.raises(KeyboardInterrupt):
        train(Run(world, tmp_path), engine, cut_off)
    other = toy_world(rounds=3, lr=0.01)
    write_config(tmp_path / "config.toml", other.config)
    if gone:
        (tmp_path / "config.toml").unlink()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"resume\.pt holds the state of a run with another configuration"):
        carry_on(other, tmp_path, "memory", resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    write_config(tmp_path / "config.toml", world.config)
    carry_on(world, tmp_path, "memory", resume=True)
    carry_on(world, tmp_path / "whole", "memory", resume=False)
    assert_same_outcome(tmp_path / "whole", tmp_path)


def test_old_client_files_go_once_a_newer_save_is_in_place(toy_world: Callable[..., World], tmp_path: Path) -> None:
    world = toy_world(algorithm="feddc", rounds=8)
    carry_on(world, tmp_path, "disk", resume=False)
    files = [path.name for path in (tmp_path / "clients").glob("*.pt")]
    assert len(files) == len({name.split("-")[0] for name in files}) <= 6


def test_a_folder_belongs_to_one_run_at_a_time(toy_world: Callable[..., World], tmp_path: Path) -> None:
    one, other = RunFolder(tmp_path), RunFolder(tmp_path)
    with one.locked(), pytest.raises(UsageError, match="Another run is writing"), other.locked():
        pass
