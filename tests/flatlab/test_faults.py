"""A full disk, a folder nobody may write to, a worker that dies, kills: one sentence, and what was saved stays."""

import ctypes
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.faults import ENGINES, RUN, kill_often, outcome, training
from benchmarks.oddities import toml_text
from flatlab.errors import FlatlabError
from flatlab.federated.config import make_config
from flatlab.federated.engine.process import ProcessEngine
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.holding import holding
from flatlab.federated.rounds import Run, most_participants, train
from flatlab.federated.state import ClientState
from flatlab.federated.world import World
from flatlab.files import WriteError, appending, atomic_write
from tests.flatlab.test_resume import assert_same_outcome

SMALL = {**RUN, "algorithm": "feddc", "hidden": [4], "train_samples": 120, "eval_every": 8}
TRAIN = ("train", "--config", "c.toml", "--out", "out", "--save-every", "0", "--workers", "1")
NO_AFFINITY = "import os; del os.sched_getaffinity; from flatlab.cli.main import main; main()"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "flatlab", *words]


def run(words: list[str], cwd: Path, before: Callable[[], object] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False, preexec_fn=before
    )


def small_files(limit: int) -> Callable[[], object]:
    """No file may grow beyond `limit` bytes, as if the disk were full there."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def obey_modes() -> None:
    """Take from root the right to write where a folder's mode does not let it; changes nothing for others."""
    if os.geteuid() == 0:
        PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


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


def is_one_sentence(done: subprocess.CompletedProcess[str]) -> bool:
    said = [line for line in done.stderr.splitlines() if line.startswith("flatlab: ")]
    return (
        len(said) == 1
        and "cannot be written" in said[0]
        and not any(word in done.stderr for word in ("Traceback", "Unexpected"))
    )


@pytest.mark.parametrize("state", ["memory", "disk"])
def test_a_run_on_a_full_disk_goes_on_once_there_is_room(state: str, tmp_path: Path) -> None:
    for name in ("whole", "full"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.toml").write_text(toml_text(SMALL))
    words = command(*TRAIN, "--state", state)
    assert run(words, tmp_path / "whole").returncode == 0
    # its metrics outgrow this after some rounds, which were saved
    length = (tmp_path / "whole" / "out" / "metrics.jsonl").stat().st_size
    largest = max(f.stat().st_size for f in (tmp_path / "whole" / "out").rglob("*") if f.suffix == ".pt")
    for limit in (1000, max(length * 2 // 3, largest - 1)):
        done = run(words, tmp_path / "full", small_files(limit))
        assert done.returncode == 1
        assert is_one_sentence(done), done.stderr
    assert not list((tmp_path / "full").rglob("*.part"))
    assert run(words, tmp_path / "full").returncode == 0
    whole, full = (outcome(tmp_path / name / "out") for name in ("whole", "full"))
    assert str(whole) == str(full)


def test_a_folder_that_nobody_may_write_to(read_only: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(toml_text({**SMALL, "rounds": 2}))
    assert run(command(*TRAIN), tmp_path).returncode == 0
    before = outcome(tmp_path / "out")
    read_only(tmp_path / "out")
    read_only(tmp_path)

    elsewhere = run(command("train", "--config", "c.toml", "--out", "new"), tmp_path, obey_modes)
    assert elsewhere.returncode == 1
    assert is_one_sentence(elsewhere), elsewhere.stderr
    words = ("trace", "out/final.pt", "--samples", "20", "--max-probes", "4", "--json", "t.json", "--figure", "t.png")
    done = run(command(*words), tmp_path, obey_modes)
    assert done.returncode == 1
    assert "network" in done.stdout  # the numbers are shown all the same
    assert "final.trace.json cannot be written (Permission denied): the numbers will only be shown." in done.stderr
    assert "t.json cannot be written (Permission denied): the numbers will only be shown." in done.stderr
    assert is_one_sentence(done), done.stderr
    assert str(outcome(tmp_path / "out")) == str(before)


def test_an_error_that_a_library_makes_of_a_failed_write_is_one_of_writing(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from flatlab.files import *\n"
        "try:\n"
        "    with atomic_write(Path('a.pt')) as file: torch.save(torch.ones(100_000), file)\n"
        "except WriteError as error: print(error)\n"
    )
    done = run([sys.executable, "-c", code], tmp_path, small_files(5000))
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


@pytest.mark.parametrize(
    ("engine", "algorithm", "kills"),
    [("sequential", "fedspeed", 2), ("stacked", "scaffold", 2), ("process", "feddc", 1)],
)
def test_runs_killed_at_random_moments_end_alike(engine: str, algorithm: str, kills: int) -> None:
    tally = kill_often(training(algorithm, engine, ENGINES[engine]), kills, random.Random())
    assert not tally.faults
    assert tally.kills.total() == kills


def test_demo_train_and_reproduce_start_where_the_system_tells_no_affinity(tmp_path: Path) -> None:
    wrapped = [sys.executable, "-c", NO_AFFINITY]
    assert run([*wrapped, "train", "--rounds", "1", "--set", "local_epochs=1"], tmp_path).returncode == 0
    assert run([*wrapped, "reproduce", "toy", "--out", "grid", "--dry-run"], tmp_path).returncode == 0
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
    later.restore(earlier.save(1))
    assert {name: rows.tolist() for name, rows in later.read([1]).items()} == {name: [[1.0] * 3] for name in own}


def test_what_a_run_will_hold() -> None:
    config = make_config({"clients": 10_000, "algorithm": "feddc", "report": "all"})
    assert holding(config, 824_714).bytes == 10_000 * len(holding(config, 824_714).vectors) * 824_714 * 4
    assert holding(make_config({"clients": 10_000}), 824_714).bytes == 0
    assert "66 GB" in holding(config, 824_714).sentence()
