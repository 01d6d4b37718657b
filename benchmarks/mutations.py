"""`python -m benchmarks mutations`: files that are wrong by structure, each through the command that reads it.

A mutation takes a sound file's content apart as a tree of tables, lists, numbers, texts and tensors, and replaces,
removes, adds or wraps one node. The command then works, or ends in exit code 2 and one sentence; anything else (a
traceback, "Unexpected", code that ran, no answer in time) is a fault. Commands run in this process, by `main`, as the
console script calls it. tests/flatlab/test_malformed.py does a few of each kind.
"""

import copy
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

import tomli_w
import torch
from torch import Tensor

from flatlab.cli.main import main as flatlab

COUNT = 10_000

SECONDS = 30
"""Within which a command answers."""

CANARY = "canary"
"""A module in the current folder, and what it leaves there when it runs."""

CONFIG: dict[str, Any] = {
    "dataset": "digits",
    "train_samples": 60,
    "test_samples": 40,
    "clients": 4,
    "partition": "iid",
    "hidden": [4],
    "algorithm": "feddc",
    "hyper": {"alpha": 0.1},
    "man": True,
    "zeta": 0.1,
    "rounds": 3,
    "participation": 0.5,
    "sampling": "bernoulli",
    "local_epochs": 1,
    "checkpoint_every": 2,
    "eval_every": 1,
    "seed": 3,
}

GRID: dict[str, Any] = {
    "title": "small",
    "target_accuracy": 0.05,
    "common": {**{k: v for k, v in CONFIG.items() if k not in ("algorithm", "hyper", "man", "seed", "partition")}},
    "axes": {"algorithms": ["fedsam"], "man": [False, True], "partitions": ["iid"], "seeds": [0]},
    "sensitivity": {"zetas": [0.05]},
    "measure": {"samples": 20, "trace_tol": 0.5, "density_depth": 4, "density_probes": 2, "surface_points": 3},
}


class NoAnswer(BaseException):
    """The command took too long; not an `Exception`, so that nothing on the way takes it for an error."""


class RunsCode:
    """What a hostile pickle holds."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (CANARY,)


@dataclass(frozen=True)
class Outcome:
    """What a command did with a file."""

    code: int
    said: str  # the last line on standard error
    fault: str  # "" where it worked, or refused the file as it should


def mutate(content: Any, odd: Callable[[Any, random.Random], Any], rng: random.Random) -> tuple[Any, str]:
    """Return a copy of the tree `content` with one node changed, and what was done where."""
    content = copy.deepcopy(content)
    parent, key, path = None, None, ""
    node = content
    while isinstance(node, dict | list) and node and (parent is None or rng.random() < 0.75):
        parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[key]
        path += f".{key}"
    if parent is None:
        return odd(node, rng), "whole"
    action = rng.choice(("replace", "replace", "replace", "remove", "wrap", "repeat", "add"))
    if action == "remove":
        del parent[key]
    elif action == "wrap":
        parent[key] = rng.choice(([node], {"x": node}))
    elif action == "repeat" and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(node))
    elif action == "add" and isinstance(parent, dict):
        parent[rng.choice(("x", "", "a b", "__class__", "é"))] = odd(node, rng)
    else:
        parent[key] = odd(node, rng)
    return content, f"{action} {path}"


def odd_plain(value: Any, rng: random.Random) -> Any:
    """A value of another type, or one that makes no sense."""
    nested: Any = 1
    for _ in range(rng.choice((3, 50))):
        nested = [nested]
    near = [-value, value * 2, value * 1e9, value + 0.5, str(value)] if isinstance(value, int | float) else []
    odd: list[Any] = [
        True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.5, 1e9, 1e308, -1e308, 5e-324,
        float("nan"), float("inf"), -float("inf"), "", "x", "nan", "\x00", "two\nlines", "a" * 5000, "\u202e",
        f"{CANARY}:run", "os:system", "../../etc/passwd", "<script>alert(1)</script>", r"\input{x}", "=1+1", "[/x]",
        [], {}, [[]], {"x": 1}, [None], nested, list(range(1000)), [-1], ["x"], [0.0], *near,
    ]  # fmt: skip
    return rng.choice(odd)


def odd_tensor(value: Any, rng: random.Random) -> Any:
    """As `odd_plain`, and for a tensor one of another kind, type, shape or of other numbers."""
    if not isinstance(value, Tensor) or rng.random() < 0.2:
        return rng.choice((odd_plain(value, rng), torch.zeros(2), {1: 2}, b"x", RunsCode(), 1 + 2j))
    return rng.choice(
        (
            lambda: value.to_sparse(),
            lambda: value.to("meta"),
            lambda: value.to(torch.complex64),
            lambda: value.to(torch.float64),
            lambda: value.to(torch.bfloat16),
            lambda: value.to(torch.int64),
            lambda: value.to(torch.float8_e4m3fn),
            lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
            lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            lambda: value.reshape(1, -1),
            lambda: value[:0] if value.dim() else value,
            lambda: torch.zeros(1).expand(10**6, 10**6),
            lambda: torch.full_like(value, float("nan")) if value.is_floating_point() else value,
            lambda: torch.full_like(value, float("inf")) if value.is_floating_point() else value,
            lambda: value * 1e30,
            lambda: torch.full_like(value, -1),
            lambda: value.clone().requires_grad_() if value.is_floating_point() else value,
        )
    )()


def toml_text(content: Any) -> str:
    """The content as TOML; what has no form there is left out."""
    return tomli_w.dumps(_without_none(content if isinstance(content, dict) else {"x": content}))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value if v is not None] if isinstance(value, list) else value


def json_text(content: Any) -> str:
    """The content as JSON."""
    return json.dumps(content)


def scarred(text: str, rng: random.Random) -> str:
    """Rarely, a text that no tree gives: numbers of thousands of digits, deep nesting, no text at all."""
    draw = rng.random()
    if draw < 0.02:
        return text.replace("1", "9" * 5000, 1)
    if draw < 0.04:
        return text.rstrip("}\n") + rng.choice(("[" * 100_000, '{"x":' * 50_000, "\x00", "\ud7ff"))
    return text


@dataclass
class Workbench:
    """A folder with sound files of every kind, and what mutates and reads each; the current folder within `opened`."""

    folder: Path
    sound: dict[str, Any]  # kind: content

    def attempt(self, kind: str, rng: random.Random) -> tuple[str, Outcome]:
        """Write a mutated file of the kind, run the command that reads it, and put the sound file back."""
        return KINDS[kind](self, rng)

    def write_tensors(self, path: Path, content: Any) -> None:
        """As `torch.save`, what it cannot write left as it was."""
        with warnings.catch_warnings(action="ignore"):
            try:
                torch.save(content, path)
            except Exception:  # some kinds of tensors cannot be written at all
                torch.save([1], path)


def command(*words: str, wanted: str) -> Outcome:
    """Run `flatlab WORDS` in this process; `wanted` is the file that a refusal is about."""
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
        fault = f"no answer in {SECONDS} s"
    except BaseException as error:
        fault = f"raised {type(error).__name__}: {error}"
    finally:
        sys.argv = argv
    lines = [line for line in err.getvalue().splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    if "Unexpected" in said or "Traceback" in err.getvalue():
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

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _configuration(bench: Workbench, rng: random.Random) -> tuple[str, Outcome]:
    content, what = mutate(bench.sound["configuration"], odd_plain, rng)
    Path("c.toml").write_text(scarred(toml_text(content), rng))
    outcome = command("train", "--config", "c.toml", "--show-split", wanted="c.toml")
    short = all(
        type(content.get(name, 1)) is int and content.get(name, 1) <= 3 for name in ("rounds", "local_epochs")
    ) if isinstance(content, dict) else False  # fmt: skip
    if outcome.code == 0 and not outcome.fault and short:
        shutil.rmtree("trained", ignore_errors=True)
        outcome = command("train", "--config", "c.toml", "--workers", "1", "--out", "trained", wanted="c.toml")
    return what, outcome


def _grid(bench: Workbench, rng: random.Random) -> tuple[str, Outcome]:
    content, what = mutate(bench.sound["grid"], odd_plain, rng)
    Path("g.toml").write_text(scarred(toml_text(content), rng))
    return what, command("reproduce", "g.toml", "--dry-run", "--out", "cells", wanted="g.toml")


def _checkpoint(bench: Workbench, rng: random.Random) -> tuple[str, Outcome]:
    content, what = mutate(bench.sound["checkpoint"], odd_tensor, rng)
    bench.write_tensors(Path("c.pt"), content)
    return what, command("eigs", "c.pt", "--samples", "12", "--layers", "none", "--tol", "0.5", wanted="c.pt")


def _resume(bench: Workbench, rng: random.Random) -> tuple[str, Outcome]:
    shutil.rmtree("again", ignore_errors=True)
    shutil.copytree("run", "again")
    if rng.random() < 0.7:
        name, content = "resume.pt", bench.sound["resume"]
    else:
        path = rng.choice(sorted(Path("again/clients").glob("*.pt")))
        name, content = f"clients/{path.name}", torch.load(path, weights_only=True)
    content, what = mutate(content, odd_tensor, rng)
    bench.write_tensors(Path("again", name), content)
    outcome = command("train", "--resume", "--workers", "1", "--out", "again", wanted=name)
    return f"{name}: {what}", outcome


def _metrics(bench: Workbench, rng: random.Random) -> tuple[str, Outcome]:
    content, what = mutate(bench.sound["metrics"], odd_plain, rng)
    lines = content if isinstance(content, list) else [content]
    text = scarred("".join(json_text(line) + "\n" for line in lines), rng)
    shutil.rmtree("again", ignore_errors=True)
    shutil.copytree("run", "again")
    Path("again/metrics.jsonl").write_text(text)
    if rng.random() < 0.5:
        return what, command("train", "--resume", "--workers", "1", "--out", "again", wanted="metrics.jsonl")
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
    from figures import gallery

    if folder is None:
        folder = "one"
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir()
        Path("again").rename(Path(folder, "again"))
    drawn = dict(gallery.FIGURES)
    if rng.random() > DRAWN:
        gallery.FIGURES.clear()  # type: ignore[attr-defined]
    try:
        return command("report", folder, wanted=folder)
    finally:
        gallery.FIGURES.update(drawn)  # type: ignore[attr-defined]


DRAWN = 0.1
"""Share of presentations with figures, which take most of the time."""

KINDS: Mapping[str, Callable[[Workbench, random.Random], tuple[str, Outcome]]] = {
    "configuration": _configuration,
    "grid": _grid,
    "checkpoint": _checkpoint,
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
        _sound("train", "--config", "c.toml", "--workers", "1", "--out", "run", "--save-every", "0")
        for cell in ("fedsam-s0", "fedsam-man-s0"):
            _measured_cell(cell)
        measurements = {
            str(path.relative_to("results")): json.loads(path.read_text())
            for path in sorted(Path("results").rglob("*.json"))
        }
        yield Workbench(
            folder,
            {
                "configuration": CONFIG,
                "grid": GRID,
                "checkpoint": torch.load("run/final.pt", weights_only=True),
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
    counts = [[15] * 4] * 4
    Path(out, "final.split.json").write_text(
        json_text({"config": CONFIG, "counts": counts, "versions": {"torch": "2"}})
    )


def _sound(*words: str) -> None:
    outcome = command(*words, wanted="")
    if outcome.code or outcome.fault:
        raise RuntimeError(f"flatlab {' '.join(words)}: {outcome.fault or outcome.said}")


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
