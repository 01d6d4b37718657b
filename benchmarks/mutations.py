"""`python -m benchmarks mutations`: files that are wrong by structure, each through the command that reads it.

A mutation takes a sound file's content apart as a tree of tables, lists, numbers, texts and tensors, and replaces,
removes, adds or wraps one node. The command then works, or ends in exit code 2 and one sentence; anything else (a
traceback, "Unexpected", code that ran, no answer in time) is a fault. Commands run in this process, by `main`, as the
console script calls it. tests/flatlab/test_malformed.py does a few of each kind.
"""

import io
import json
import os
import random
import shutil
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.oddities import CANARY, json_text, mutate, odd_plain, scarred, toml_text, write_mutated
from benchmarks.sound_files import CONFIG, GRID, VERDICT
from flatlab.cli.main import main as flatlab

COUNT = 10_000

SPLIT = ("train", "--config", "split.toml", "--partition", "file", "--partition-file", "s.json", "--show-split")
"""The command that reads a split file."""

SECONDS, WALL_SECONDS = 30, 300
"""Within which a command answers: of this process's own time, and by the clock, since machines are shared."""


class NoAnswer(BaseException):
    """The command took too long; not an `Exception`, so that nothing on the way takes it for an error."""


@dataclass(frozen=True)
class Outcome:
    """What a command did with a file."""

    code: int
    said: str  # the last line on standard error
    fault: str  # "" where it worked, or refused the file as it should


@dataclass
class Workbench:
    """A folder with sound files of every kind, and what mutates and reads each; the current folder within `opened`."""

    sound: dict[str, Any]  # kind: content

    def attempt(self, kind: str, rng: random.Random) -> tuple[str, Outcome]:
        """Write a mutated file of the kind, run the command that reads it, and put the sound file back."""
        return KINDS[kind](self, rng)


def command(*words: str) -> Outcome:
    """Run `flatlab WORDS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv, code = sys.argv, 0
    sys.argv = ["flatlab", *words]
    fault = ""
    try:
        with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings(action="ignore"), _alarm():
            flatlab()
    except SystemExit as left:
        code = int(left.code or 0)
    except NoAnswer:
        fault = "no answer"
    except BaseException as error:
        fault = f"raised {type(error).__name__}: {error}"
    finally:
        sys.argv = argv
    lines = [line for line in err.getvalue().splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    if "Unexpected " in said or "Traceback" in err.getvalue():
        fault = said
    elif code not in (0, 2) and not (code == 1 and "diverged" in said):
        fault = fault or f"exit code {code}: {said}"
    elif code == 2 and not said.startswith("flatlab: "):
        fault = fault or f"no sentence: {said}"
    if Path(CANARY).exists():
        fault = f"code ran ({said})"
        Path(CANARY).rmdir()
    return Outcome(code, said, fault)


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise NoAnswer

    before = {number: signal.signal(number, ring) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _configuration(bench: Workbench, rng: random.Random) -> tuple[str, Outcome]:
    content, what = mutate(bench.sound["configuration"], odd_plain, rng)
    Path("c.toml").write_text(scarred(toml_text(content), rng))
    outcome = command("train", "--config", "c.toml", "--show-split")
    short = all(
        type(content.get(name, 1)) is int and content.get(name, 1) <= 3 for name in ("rounds", "local_epochs")
    ) if isinstance(content, dict) else False  # fmt: skip
    if outcome.code == 0 and not outcome.fault and short:
        shutil.rmtree("trained", ignore_errors=True)
        outcome = command("train", "--config", "c.toml", "--workers", "1", "--out", "trained")
    return what, outcome


def _grid(bench: Workbench, rng: random.Random) -> tuple[str, Outcome]:
    content, what = mutate(bench.sound["grid"], odd_plain, rng)
    Path("g.toml").write_text(scarred(toml_text(content), rng))
    return what, command("reproduce", "g.toml", "--dry-run", "--out", "cells")


def _checkpoint(bench: Workbench, rng: random.Random) -> tuple[str, Outcome]:
    what = write_mutated(Path("c.pt"), bench.sound["checkpoint"], rng)
    return what, command("eigs", "c.pt", "--samples", "12", "--layers", "none", "--tol", "0.5")


def _kept_clients(bench: Workbench, rng: random.Random) -> tuple[str, Outcome]:
    what = write_mutated(Path("clients-0003.pt"), bench.sound["kept clients"], rng)
    return what, command("clients", "clients-0003.pt", "--samples", "12", "--tol", "0.5")


def _split(bench: Workbench, rng: random.Random) -> tuple[str, Outcome]:
    content, what = mutate(bench.sound["split"], odd_plain, rng)
    Path("s.json").write_text(scarred(json_text(content), rng))
    return what, command(*SPLIT)


def _resume(bench: Workbench, rng: random.Random) -> tuple[str, Outcome]:
    _copy_unfinished()
    if rng.random() < 0.7:
        name, content = "resume.pt", bench.sound["resume"]
    else:
        path = rng.choice(sorted(Path("again/clients").glob("*.pt")))
        name, content = f"clients/{path.name}", torch.load(path, weights_only=True)
    what = write_mutated(Path("again", name), content, rng)
    outcome = command("train", "--resume", "--workers", "1", "--out", "again")
    return f"{name}: {what}", outcome


def _copy_unfinished() -> None:
    """The run as it was before its last checkpoint was written, in the folder "again": going on reads all its files."""
    shutil.rmtree("again", ignore_errors=True)
    shutil.copytree("run", "again", ignore=shutil.ignore_patterns("final.pt"))


def _metrics(bench: Workbench, rng: random.Random) -> tuple[str, Outcome]:
    content, what = mutate(bench.sound["metrics"], odd_plain, rng)
    lines = content if isinstance(content, list) else [content]
    text = scarred("".join(json_text(line) + "\n" for line in lines), rng)
    _copy_unfinished()
    Path("again/metrics.jsonl").write_text(text)
    if rng.random() < 0.5:
        return what, command("train", "--resume", "--workers", "1", "--out", "again")
    return what, _present(rng)


def _measurement(bench: Workbench, rng: random.Random) -> tuple[str, Outcome]:
    name = rng.choice(sorted(bench.sound["measurements"]))
    content, what = mutate(bench.sound["measurements"][name], odd_plain, rng)
    path = Path("results") / name
    before = path.read_text()
    path.write_text(scarred(json_text(content), rng))
    try:
        return f"{name}: {what}", _present(rng, "results")
    finally:
        path.write_text(before)


def _present(rng: random.Random, folder: str | None = None) -> Outcome:
    """Everything that is made of a folder of results: always its tables and page, and at times the figures too."""
    if folder is None:
        folder = "one"
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir()
        Path("again").rename(Path(folder, "again"))
    return _report(folder, drawn=rng.random() <= DRAWN)


def _report(folder: str, *, drawn: bool) -> Outcome:
    """The tables and the page, with the figures or without."""
    from figures import gallery

    figures = dict(gallery.FIGURES)
    if not drawn:
        gallery.FIGURES.clear()  # type: ignore[attr-defined]
    try:
        return command("report", folder)
    finally:
        gallery.FIGURES.update(figures)  # type: ignore[attr-defined]


DRAWN = 0.04
"""Share of presentations with figures, which take most of the time."""

KINDS: Mapping[str, Callable[[Workbench, random.Random], tuple[str, Outcome]]] = {
    "configuration": _configuration,
    "grid": _grid,
    "checkpoint": _checkpoint,
    "kept clients": _kept_clients,
    "split": _split,
    "resume": _resume,
    "metrics": _metrics,
    "measurement": _measurement,
}


@contextmanager
def opened(folder: Path) -> Iterator[Workbench]:
    """Train and measure a small run and a small grid in `folder`, which is the current one within the block."""
    before = Path.cwd()
    os.chdir(folder)
    Path(f"{CANARY}.py").write_text(f"import os\nos.mkdir({CANARY!r})\nrun = None\n")
    try:
        Path("c.toml").write_text(toml_text(CONFIG))
        Path("g.toml").write_text(toml_text(GRID))
        _sound(
            "train", "--config", "c.toml", "--workers", "1", "--out", "run", "--save-every", "0", "--keep-clients", "3"
        )
        _sound("train", "--config", "c.toml", "--save-split", "s.json")
        Path("split.toml").write_text(toml_text({k: v for k, v in CONFIG.items() if k != "partition"}))
        _sound(*SPLIT)
        for cell in ("fedsam-s0", "fedsam-man-s0"):
            _measured_cell(cell)
        Path("results/study.json").write_text(json_text({"verdicts": [VERDICT]}))
        _require(_report("results", drawn=False), "report results")
        measurements = {
            str(path.relative_to("results")): json.loads(path.read_text())
            for path in sorted(Path("results").rglob("*.json"))
        }
        yield Workbench(
            {
                "configuration": CONFIG,
                "grid": GRID,
                "checkpoint": torch.load("run/final.pt", weights_only=True),
                "kept clients": torch.load("run/clients-0003.pt", weights_only=True),
                "split": json.loads(Path("s.json").read_text()),
                "resume": torch.load("run/resume.pt", weights_only=True),
                "metrics": [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()],
                "measurements": measurements,
            },
        )
    finally:
        os.chdir(before)


def _measured_cell(cell: str) -> None:
    man = ["--man"] if "-man" in cell else ["--no-man"]
    fields = {k: v for k, v in CONFIG.items() if k not in ("algorithm", "hyper", "man", "seed")}
    Path("cell.toml").write_text(toml_text(fields))
    out = f"results/{cell}"
    _sound(
        "train", "--config", "cell.toml", "--algorithm", "fedsam", *man, "--seed", "0", "--workers", "1", "--out", out
    )
    samples = ("--samples", "20")
    for path in (f"{out}/final.pt", f"{out}/round-0002.pt"):
        _sound("eigs", path, *samples, "--tol", "0.3")
    _sound("trace", f"{out}/final.pt", *samples, "--tol", "0.5")
    _sound("density", f"{out}/final.pt", *samples, "--depth", "4", "--probes", "2")
    _sound("surface", f"{out}/final.pt", *samples, "--points", "3")
    made = json.loads(Path(out, "final.eigs.json").read_text())
    of = {"fingerprint": made["fingerprint"], "versions": {"torch": "2"}}
    checks = [{"statement": "S1", "layer": "", "claimed": claimed, "outcome": "holds"} for claimed in (True, False)]
    Path(out, "final.verify.json").write_text(json_text({"checks": checks, **of}))
    split = {"config": made["run"]["config"], "counts": [[15] * 4] * 4, **of}
    Path(out, "final.split.json").write_text(json_text(split))


def _sound(*words: str) -> None:
    _require(command(*words), " ".join(words))


def _require(outcome: Outcome, words: str) -> None:
    if outcome.code or outcome.fault:
        raise RuntimeError(f"flatlab {words}: {outcome.fault or outcome.said}")


def main(count: str = str(COUNT)) -> None:
    """Print how many mutations of each kind worked, were refused, or are faults, and every fault."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    outcomes: Counter[tuple[str, str]] = Counter()
    named: Counter[str] = Counter()
    with TemporaryDirectory() as folder, opened(Path(folder)) as bench:
        for number in range(int(count)):
            kind = list(KINDS)[number % len(KINDS)]
            what, outcome = bench.attempt(kind, random.Random(number))
            result = "faults" if outcome.fault else {0: "worked", 1: "diverged", 2: "refused"}[outcome.code]
            outcomes[kind, result] += 1
            named[kind] += result == "refused" and any(end in outcome.said for end in (".toml", ".pt", ".json"))
            if outcome.fault:
                print(f"{kind} {number}, {what}: {outcome.fault[:300]}", flush=True)
    results = ("worked", "refused", "diverged", "faults")
    print(f"\n| file | {' | '.join(results)} | refusals that name the file |\n|---|{'---|' * 5}")
    for kind in KINDS:
        print(f"| {kind} | {' | '.join(str(outcomes[kind, result]) for result in results)} | {named[kind]} |")
