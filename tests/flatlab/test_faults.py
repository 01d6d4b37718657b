"""A full disk, a folder nobody may write to, a worker that dies, kills: one sentence, and what was saved stays."""

import ctypes
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.faults import ENGINES, RUN, finish, kill_often, outcome, same, start, training
from benchmarks.oddities import toml_text
from flatlab.errors import FlatlabError
from flatlab.federated.config import make_config
from flatlab.federated.engine.process import ProcessEngine
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.footprint import footprint
from flatlab.federated.participants import most_participants
from flatlab.federated.rounds import Run, train
from flatlab.federated.state import ClientState
from flatlab.federated.world import World
from flatlab.files import WriteError, appending, atomic_write
from tests.command_line import program
from tests.flatlab.test_resume import assert_same_outcome

SMALL = {**RUN, "algorithm": "feddc", "hidden": [4], "train_samples": 120, "eval_every": 1}
TRAIN = ("train", "--config", "c.toml", "--out", "out", "--save-every", "0", "--workers", "1")
NO_AFFINITY = "import os; del os.sched_getaffinity; from flatlab.cli.main import main; main()"


def flatlab(words: Sequence[str], folder: Path, before: Callable[[], object] = lambda: None) -> tuple[int | None, str]:
    """Run a command in a forked process, which saves the import of torch; returns its exit code and what it says."""
    code = finish(start(words, {}, folder, before))
    said = folder / "said"
    text = said.read_text()
    said.write_text("")
    return code, text


def small_files(limit: int) -> Callable[[], object]:
    """No file may grow beyond `limit` bytes, as if the disk were full there."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def obey_modes() -> None:
    """Take from root the right to write where a folder's mode does not let it; changes nothing for others."""
    libc = ctypes.CDLL(None)
    version, override = 0x20080522, 1 << 1  # linux/capability.h: _LINUX_CAPABILITY_VERSION_3, CAP_DAC_OVERRIDE
    header, data = (ctypes.c_uint32 * 2)(version, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    data[0] &= ~override  # of the effective ones
    assert libc.capset(header, data) == 0


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """A function that makes a folder read-only until the test ends."""
    if not sys.platform.startswith("linux"):
        pytest.skip("root's rights are taken by a call of Linux")
    folders = []

    def close(folder: Path) -> None:
        folders.append(folder)
        folder.chmod(0o555)

    yield close
    for folder in folders:
        folder.chmod(0o755)


def assert_one_sentence(said: str) -> None:
    sentences = [line for line in said.splitlines() if line.startswith("flatlab: ")]
    assert len(sentences) == 1, said
    assert "cannot be written" in sentences[0]
    assert "Traceback" not in said


@pytest.mark.long
@pytest.mark.parametrize("state", ["memory", "disk"])
def test_a_run_on_a_full_disk_goes_on_once_there_is_room(state: str, tmp_path: Path) -> None:
    for name in ("whole", "full"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.toml").write_text(toml_text(SMALL))
    words = (*TRAIN, "--state", state)
    assert flatlab(words, tmp_path / "whole")[0] == 0
    # its metrics outgrow what its other files need, after some rounds, which are saved
    largest = max(file.stat().st_size for file in (tmp_path / "whole" / "out").rglob("*.pt"))
    assert (tmp_path / "whole" / "out" / "metrics.jsonl").stat().st_size > largest
    for limit, saved in ((1000, False), (largest, True)):
        code, said = flatlab(words, tmp_path / "full", small_files(limit))
        assert code == 1, said
        assert_one_sentence(said)
        assert (tmp_path / "full" / "out" / "resume.pt").exists() == saved
    assert not list((tmp_path / "full").rglob("*.part"))
    code, said = flatlab(words, tmp_path / "full")
    assert code == 0, said
    assert "going on" in said
    assert same(outcome(tmp_path / "full" / "out"), outcome(tmp_path / "whole" / "out"))


def test_a_folder_that_nobody_may_write_to(read_only: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(toml_text({**SMALL, "rounds": 2}))
    assert flatlab(TRAIN, tmp_path)[0] == 0
    before = outcome(tmp_path / "out")
    (tmp_path / "closed").mkdir()
    read_only(tmp_path / "out")
    read_only(tmp_path / "closed")

    code, said = flatlab(("train", "--config", "c.toml", "--out", "closed/new"), tmp_path, obey_modes)
    assert code == 1, said
    assert_one_sentence(said)
    places = ("--json", "closed/t.json", "--figure", "closed/t.png")
    words = ("trace", "out/final.pt", "--samples", "20", "--max-probes", "4", *places)
    code, said = flatlab(words, tmp_path, obey_modes)
    assert code == 1, said
    assert_one_sentence(said)
    for name in ("out/final.trace.json", "closed/t.json", "closed/t.png"):  # said before the work begins
        assert said.index(f"{name} cannot be written (Permission denied): the numbers will only") < said.index(
            "network"
        )
    assert same(outcome(tmp_path / "out"), before)


def test_an_error_that_a_library_makes_of_a_failed_write_is_one_of_writing(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from flatlab.files import *\n"
        "try:\n"
        "    with atomic_write(Path('a.pt')) as file: torch.save(torch.ones(100_000), file)\n"
        "except WriteError as error: print(error)\n"
    )
    done = program(sys.executable, "-c", code, cwd=tmp_path, before=small_files(5000))
    assert done.stdout.startswith("a.pt cannot be written (File too large)"), done.stderr
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_writer_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a"):
        raise ZeroDivisionError
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        (tmp_path / "b").read_text()
    assert not list(tmp_path.iterdir())


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\n")

    def fail_half_way() -> None:
        with appending(tmp_path / "a") as file:
            file.write(b"half")
            file.flush()
            raise OSError(28, "No space left on device")

    with pytest.raises(WriteError, match="No space left"):
        fail_half_way()
    assert (tmp_path / "a").read_text() == "one\n"


def test_a_worker_that_dies_between_rounds(toy_world: Callable[..., World], tmp_path: Path) -> None:
    world = toy_world(algorithm="feddc", rounds=6)
    whole, run_ = Run(world, tmp_path / "whole"), Run(world, tmp_path / "killed")
    with SequentialEngine(world) as engine:
        train(whole, engine, lambda record: None)

    def kill(record: object) -> None:
        if run_.server.round == 3:
            worker = next(iter(workers.pool._processes))
            os.kill(worker, signal.SIGKILL)
            while not workers.pool._broken:
                time.sleep(0.01)

    workers = ProcessEngine(world, 1, most_participants(world.config))
    with workers, pytest.raises(FlatlabError, match="worker process died"):
        train(run_, workers, kill)
    again = Run(world, tmp_path / "killed")
    again.resume()
    assert again.server.round == 3
    with SequentialEngine(world) as engine:
        train(again, engine, lambda record: None)
    assert_same_outcome(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.long
@pytest.mark.parametrize(
    ("engine", "algorithm", "kills"),
    [("sequential", "fedspeed", 2), ("stacked", "scaffold", 2), ("streams", "fedsmoo", 1), ("process", "feddc", 1)],
)
def test_runs_killed_at_random_moments_end_alike(engine: str, algorithm: str, kills: int) -> None:
    tally = kill_often(training(algorithm, engine, ENGINES[engine]), kills, random.Random())
    assert not tally.faults
    assert tally.kills.total() == kills


@pytest.mark.long
def test_demo_train_and_reproduce_start_where_the_system_tells_no_affinity(tmp_path: Path) -> None:
    wrapped = [sys.executable, "-c", NO_AFFINITY]
    assert program(*wrapped, "train", "--rounds", 1, "--set", "local_epochs=1", cwd=tmp_path).returncode == 0
    assert program(*wrapped, "reproduce", "toy", "--out", "grid", "--dry-run", cwd=tmp_path).returncode == 0
    process = subprocess.Popen([*wrapped, "demo", "--out", "demo"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "demo" / "without-man" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    process.terminate()
    assert process.communicate()[1].count("Go on with") == 1
    assert process.returncode == 143


def test_last_models_are_kept_where_the_run_reports_their_mean(toy_world: Callable[..., World], tmp_path: Path) -> None:
    for report, kept in (("server", False), ("all", True)):
        world = toy_world(rounds=2, report=report)
        run_ = Run(world, tmp_path / report)
        with SequentialEngine(world) as engine:
            train(run_, engine, lambda record: None)
        assert ("all" in run_.models()) == bool(run_.clients.rows) == kept


@pytest.mark.parametrize("own", [(), ("h",)])
def test_clients_of_an_earlier_version_bring_a_last_model(own: tuple[str, ...], tmp_path: Path) -> None:
    zeros = torch.zeros(3)
    earlier = ClientState(tmp_path, dict.fromkeys([*own, "last model"], zeros))
    earlier.write([1], dict.fromkeys(earlier.initial, torch.ones(1, 3)), 1)
    later = ClientState(tmp_path, dict.fromkeys(own, zeros))
    earlier.write_files(earlier.take_changes(1))
    later.restore(earlier.files)
    assert {name: rows.tolist() for name, rows in later.read([1]).items()} == {name: [[1.0] * 3] for name in own}


def test_what_a_run_will_hold() -> None:
    config = make_config({"clients": 10_000, "algorithm": "feddc", "report": "all"})
    assert footprint(config, 824_714).bytes == 10_000 * len(footprint(config, 824_714).vectors) * 824_714 * 4
    assert footprint(make_config({"clients": 10_000}), 824_714).bytes == 0
    assert "99 GB" in footprint(config, 824_714).sentence()
