"""`python -m benchmarks faults[.COUNT]`: runs killed at random moments, each carried on until it ends.

A command is started, killed after a random time (by SIGKILL or SIGTERM), and given again, until it ends; what
it leaves must be bit for bit what the same command leaves that nobody disturbs. Commands run in forked processes, so
that a moment falls into the run more often than into the import of torch. tests/flatlab/test_faults.py does a few.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.context import ForkProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from joblib.externals.loky import get_reusable_executor

from benchmarks.oddities import toml_text
from flatlab.cli.main import main as flatlab
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.runs.checkpoint import load_checkpoint

COUNT = 100
SECONDS = 300
"""Within which a command that nobody disturbs has ended."""

RUN: dict[str, Any] = {
    "dataset": "digits",
    "train_samples": 240,
    "test_samples": 40,
    "clients": 6,
    "hidden": [8],
    "man": True,
    "rounds": 24,
    "local_epochs": 1,
    "eval_every": 4,
    "checkpoint_every": 10,
    "seed": 3,
}

ENGINES = {
    "sequential": ("--workers", "1"),
    "process": ("--workers", "2", "--engine", "process"),
    "stacked": ("--engine", "batched", "--device", "cpu"),
    "streams": ("--engine", "streams", "--device", "cpu"),
}

STATEFUL = tuple(name for name, rules in ALGORITHMS.items() if rules.own or rules.server)

TIMES = ("seconds", "images_per_second", "evaluation_seconds", "versions")
"""What no two runs have in common."""


@dataclass(frozen=True)
class Case:
    """A command that writes the folder "out" of its working directory."""

    name: str
    words: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)  # that it needs, by name


@dataclass
class Tally:
    """What came of the kills of one case."""

    kills: Counter[str] = field(default_factory=Counter)  # by signal
    ends: int = 0  # runs that ended after one kill or more, and were compared
    faults: list[str] = field(default_factory=list)


def cases() -> Iterator[Case]:
    """Every engine with every stateful algorithm, and a grid."""
    for algorithm in STATEFUL:
        for engine, words in ENGINES.items():
            yield training(algorithm, engine, words)
    yield reproducing()


def training(algorithm: str, engine: str, words: Sequence[str]) -> Case:
    """One run, whose state is saved after every round; of every other algorithm on disk between rounds as well."""
    state = "disk" if STATEFUL.index(algorithm) % 2 else "memory"
    command = ("train", "--config", "c.toml", "--out", "out", "--save-every", "0", "--state", state, *words)
    return Case(f"{engine}, {algorithm}", command, {"c.toml": toml_text({**RUN, "algorithm": algorithm})})


def reproducing() -> Case:
    """Two cells, side by side, and their eigenvalues."""
    common = {name: value for name, value in RUN.items() if name not in ("man", "seed")}
    axes = {"algorithms": ["feddc"], "man": [False, True], "partitions": ["dirichlet-0.3"], "seeds": [0]}
    grid = {"title": "faults", "common": common, "axes": axes, "measure": {"samples": 60}}
    return Case("reproduce", ("reproduce", "g.toml", "--out", "out", "--jobs", "2"), {"g.toml": toml_text(grid)})


def kill_often(case: Case, kills: int, rng: random.Random) -> Tally:
    """Kill `case` that many times, and compare every end with the undisturbed one."""
    tally = Tally()
    with TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        began = time.monotonic()
        code = finish(start(case.words, case.files, whole))
        duration = time.monotonic() - began
        if code != 0:
            tally.faults.append(f"{case.name}, undisturbed: exit code {code}: {_said(whole)}")
            return tally
        expected = outcome(whole / "out")
        attempt = 0
        while tally.kills.total() < kills:
            attempt += 1
            _disturb(case, Path(folder, f"killed-{attempt}"), kills, duration, rng, tally)
            if tally.ends and not same(outcome(Path(folder, f"killed-{attempt}", "out")), expected):
                tally.faults.append(f"{case.name}: another end than undisturbed")
            if tally.faults:
                break
    return tally


def _disturb(case: Case, folder: Path, kills: int, duration: float, rng: random.Random, tally: Tally) -> None:
    """Kill the run in `folder` again and again, until it ends."""
    before = tally.kills.total()
    while True:
        process = start(case.words, case.files, folder)
        number = rng.choice((signal.SIGKILL, signal.SIGTERM))
        if tally.kills.total() < kills:
            process.join(rng.uniform(0, duration))
            if process.is_alive():
                os.kill(process.pid or 0, number)
                code = finish(process)
                if code in (-number, 128 + number):
                    tally.kills[number.name] += 1
                    continue
        code = finish(process)
        if code != 0:
            tally.faults.append(f"{case.name}: exit code {code}: {_said(folder)}")
        tally.ends += tally.kills.total() > before
        return


def start(
    words: Sequence[str], files: Mapping[str, str], folder: Path, before: Callable[[], object] = lambda: None
) -> ForkProcess:
    """Begin the command `words` in `folder`, beside `files`, after `before`; what it says goes to the file "said"."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    process = multiprocessing.get_context("fork").Process(target=_command, args=(words, folder, before))
    process.start()
    return process


def _command(words: Sequence[str], folder: Path, before: Callable[[], object]) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    forkserver._forkserver.__init__()  # type: ignore[misc]  # a parent's server is no child of this process
    sys.argv = ["flatlab", *words]
    with Path("said").open("a") as said, redirect_stdout(said), redirect_stderr(said):
        before()
        try:
            flatlab()
        finally:
            if words[0] == "reproduce":  # an interpreter does so at its end, a forked process waits for idle workers
                get_reusable_executor().shutdown(kill_workers=True)


def finish(process: ForkProcess) -> int | None:
    """Return the exit code; None where there is none in time."""
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def _said(folder: Path) -> str:
    lines = (folder / "said").read_text().strip().splitlines()
    return lines[-1] if lines else "nothing said"


def outcome(folder: Path) -> dict[str, Any]:
    """Return all that a run or a grid leaves and that no clock decides, by file."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".pt" and path.parent.name != "clients" and path.name != "resume.pt":
            checkpoint = load_checkpoint(path)
            found[name] = [checkpoint.state_dict, checkpoint.models, _timeless(checkpoint.metrics)]
        elif path.name == "metrics.jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name.endswith(".eigs.json"):
            found[name] = _timeless(json.loads(path.read_text()))
        elif path.suffix == ".part":
            found[name] = "left behind"
    return found


def _timeless(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _timeless(value) for name, value in content.items() if name not in TIMES}
    return [_timeless(value) for value in content] if isinstance(content, list) else content


def same(one: Any, other: Any) -> bool:
    """Whether two outcomes are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def main(count: str = str(COUNT)) -> None:
    """Share `count` kills among the cases and print what came of them; exits with 1 where there was a fault."""
    every = list(cases())
    faults = 0
    for index, case in enumerate(every):
        kills = int(count) * (index + 1) // len(every) - int(count) * index // len(every)
        if kills:
            tally = kill_often(case, kills, random.Random(case.name))
            faults += len(tally.faults)
            shares = ", ".join(f"{number} {name}" for name, number in sorted(tally.kills.items()))
            print(f"{case.name}: {shares}; {tally.ends} ends compared; {len(tally.faults)} faults", flush=True)
            print(*tally.faults, sep="\n", end="\n" if tally.faults else "")
    if faults:
        sys.exit(1)
