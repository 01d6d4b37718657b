"""A user's own algorithm in a run: what it draws and reports, and what goes wrong after the rounds of its trial."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flatlab.errors import FlatlabError, UsageError
from flatlab.federated.engine.base import Engine
from flatlab.federated.engine.batched import BatchedEngine
from flatlab.federated.engine.process import ProcessEngine
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.engine.streams import StreamsEngine
from flatlab.federated.own_algorithm import _own
from flatlab.federated.participants import most_participants
from flatlab.federated.rounds import Run, train
from flatlab.federated.trial import tried
from flatlab.federated.world import World
from flatlab.functions import let_run
from tests.command_line import flatlab

HEAD = """
import torch
from flatlab.federated.algorithms.base import Algorithm, Terms, weighted_mean as W
def combine(r): return W(r), {}
"""
MakeWorld = Callable[..., World]


@pytest.fixture
def own_world(here: Path, toy_world: MakeWorld) -> MakeWorld:
    """A function that makes a world of the algorithm that a line of Python defines."""

    def make(code: str, **fields: Any) -> World:
        _own.cache_clear()
        sys.modules.pop("mine", None)
        (here / "mine.py").write_text(f"{HEAD}{code}\n")
        let_run("mine:ALGORITHM")
        return toy_world(algorithm="mine:ALGORITHM", **fields)

    return make


@contextmanager
def processes(world: World) -> Iterator[Engine]:
    with ProcessEngine(world, 2, most_participants(world.config)) as engine:
        yield engine


ENGINES: dict[str, Callable[[World], Any]] = {
    "sequential": SequentialEngine,
    "process": processes,
    "batched": lambda world: BatchedEngine(world, torch.device("cpu")),
    "streams": lambda world: StreamsEngine(world, torch.device("cpu"), 3),
}


def after(world: World, folder: Path, rounds: int, engine: str = "sequential") -> Tensor:
    """w after `rounds`, from the newest saved round."""
    run = Run(world, folder)
    run.resume()
    torch.rand(rounds)  # the caller's generator stands anywhere
    with ENGINES[engine](world) as open_:
        while run.server.round < rounds:
            run.advance(open_)
    run.save()
    return run.server.w


NOISE = {
    "combine": "ALGORITHM = Algorithm('a', 'b', lambda r: (W(r) + 0.05 * torch.randn_like(r.w), {}))",
    "start": "ALGORITHM = Algorithm('a', 'b', combine, start=lambda w, s, h, t: w + 0.05 * torch.randn_like(w))",
    "initial": "ALGORITHM = Algorithm('a', 'b', lambda r: (W(r) + r.server['n'], {'n': r.server['n']}), server=('n',),"
    "initial=lambda w, h: {'n': 0.05 * torch.randn_like(w)})",
    "terms": "ALGORITHM = Algorithm('a', 'b', combine, terms=lambda c: Terms(constant=torch.randn_like(c.w)))",
    "ascent": "ALGORITHM = Algorithm('a', 'b', combine, ascent=lambda c, theta, g: 0.1 * torch.randn_like(g))",
    "keep": "ALGORITHM = Algorithm('a', 'b', lambda r: (W(r) + r.after['h'].mean(0), {}), own=('h',), "
    "keep=lambda c, d: {'h': 0.05 * torch.randn_like(d)})",
}


@pytest.mark.parametrize("where", NOISE)
def test_what_it_draws_is_the_runs(where: str, own_world: MakeWorld, tmp_path: Path) -> None:
    world = tried(own_world(NOISE[where]))
    whole = after(world, tmp_path / "whole", 3)
    after(world, tmp_path / "cut", 1)
    assert torch.equal(after(world, tmp_path / "cut", 3), whole)
    assert torch.equal(after(world, tmp_path / "workers", 3, "process"), whole)
    config = world.config.model_copy(update={"seed": 4})
    other = World(config, world.data, world.parts, world.layout)
    assert not torch.equal(after(other, tmp_path / "other", 3), whole)


def test_noise_is_new_in_every_round(own_world: MakeWorld, tmp_path: Path) -> None:
    world = tried(own_world("ALGORITHM = Algorithm('a', 'b', lambda r: (torch.randn_like(r.w), {}))"))
    assert not torch.equal(after(world, tmp_path, 1), after(world, tmp_path, 2))


@pytest.mark.parametrize("where", ["terms", "ascent", "keep"])
def test_clients_that_draw_do_not_train_as_a_stack(where: str, own_world: MakeWorld) -> None:
    world = tried(own_world(NOISE[where]))
    assert world.draws == where
    for engine in ("batched", "streams"):
        with pytest.raises(UsageError, match=f"draws random numbers in its {where}.*use --engine process"):
            ENGINES[engine](world)
    drawn_by_the_server = tried(own_world(NOISE["combine"]))
    with BatchedEngine(drawn_by_the_server, torch.device("cpu")):
        assert drawn_by_the_server.draws == ""


def test_the_reported_average_is_no_other_model(own_world: MakeWorld) -> None:
    step = "lambda r: (r.w + 0.1 * (W(r) - r.w), {})"
    for dtype in ("float32", "float64"):
        with pytest.raises(UsageError, match="combine returns another w: give the Algorithm server_differs=True"):
            tried(own_world(f"ALGORITHM = Algorithm('a', 'b', {step})", report="selected", dtype=dtype))
        tried(own_world(f"ALGORITHM = Algorithm('a', 'b', {step})", dtype=dtype))
        for right in (f"{step}, server_differs=True", "combine", "lambda r: (r.theta.mean(0), {}), weighted=False"):
            tried(own_world(f"ALGORITHM = Algorithm('a', 'b', {right})", report="selected", dtype=dtype))


SERVER = ", server=('m',))"
LATE = {
    "its combine changes round_.server.'m'. in place": "def late(r):\n    m = r.server['m']\n"
    "    if r.t >= 3: m.mul_(0.5)\n    return W(r), {'m': m + W(r)}\nALGORITHM = Algorithm('a', 'b', late" + SERVER,
    "its combine returns something else than a dictionary of its vectors .m.": "ALGORITHM = Algorithm('a', 'b', "
    "lambda r: (W(r), {} if r.t >= 3 else {'m': W(r)})" + SERVER,
    "its combine returns something else than a dictionary": "ALGORITHM = Algorithm('a', 'b', "
    "lambda r: (W(r), {'m': W(r)[:2] if r.t >= 3 else W(r)})" + SERVER,
    "its combine returns a w that is no tensor": "ALGORITHM = Algorithm('a', 'b', "
    "lambda r: (W(r).float() if r.t >= 3 else W(r), {'m': W(r)})" + SERVER,
    "its combine returns no pair": "ALGORITHM = Algorithm('a', 'b', "
    "lambda r: None if r.t >= 3 else (W(r), {'m': W(r)})" + SERVER,
    "its combine raised KeyError: 'oops' .mine.py, line 6": "def late(r):\n"
    "    return W(r), {'m': r.server['m' if r.t < 3 else 'oops'] + W(r)}\nALGORITHM = Algorithm('a', 'b', late"
    + SERVER,
    "its start raised ZeroDivisionError.*line 5": "ALGORITHM = Algorithm('a', 'b', lambda r: (W(r), {'m': W(r)}), "
    "start=lambda w, s, h, t: w + 0 * (1 / (3 - t))" + SERVER,
    "its start returns something else": "ALGORITHM = Algorithm('a', 'b', lambda r: (W(r), {'m': W(r)}), "
    "start=lambda w, s, h, t: w if t < 3 else w[:2]" + SERVER,
    "its models returns something else": "ALGORITHM = Algorithm('a', 'b', lambda r: (W(r), {'m': r.server['m'] + 1}), "
    "models=lambda w, s: {'x': w if s['m'][0] < 4 else w[:2]}" + SERVER,
    "its terms raised ZeroDivisionError.*line 5": "ALGORITHM = Algorithm('a', 'b', lambda r: (W(r), {'m': W(r)}), "
    "terms=lambda c: Terms(proximal=1 / (3 - c.t))" + SERVER,
    "its terms, or what another of its functions returned, raised RuntimeError": "ALGORITHM = Algorithm('a', 'b', "
    "lambda r: (W(r), {'m': W(r)}), terms=lambda c: Terms(constant=c.w if c.t < 3 else c.w[:2])" + SERVER,
    "its keep returns something else": "ALGORITHM = Algorithm('a', 'b', lambda r: (W(r), {'m': W(r)}), "
    "own=('h',), keep=lambda c, d: {'h': d} if c.t < 3 else {}" + SERVER,
    "changes server.'m'. in place": "def terms(c):\n    if c.t >= 3: c.server['m'].mul_(0.5)\n"
    "    return Terms()\nALGORITHM = Algorithm('a', 'b', lambda r: (W(r), {'m': W(r)}), terms=terms" + SERVER,
}


@pytest.mark.parametrize("said", LATE)
def test_a_late_mistake_is_named_and_the_state_kept(said: str, own_world: MakeWorld, tmp_path: Path) -> None:
    world = tried(own_world(LATE[said]))
    good = Run(world, tmp_path / "good")
    with SequentialEngine(world) as engine:
        for _ in range(3):
            good.advance(engine)
    for name in ENGINES:
        folder = tmp_path / name
        with (
            pytest.raises(FlatlabError, match=f"The algorithm mine:ALGORITHM failed in round 4, .*: .*{said}"),
            ENGINES[name](world) as engine,
        ):
            train(Run(world, folder), engine, lambda record: None, save_every=1e9)
        again = Run(world, folder)
        again.resume()
        assert again.server.round == 3
        torch.testing.assert_close(again.server.w, good.server.w)
        torch.testing.assert_close(again.server.vectors, good.server.vectors)


def test_the_state_is_kept_whatever_is_raised(toy_world: MakeWorld, tmp_path: Path) -> None:
    world = toy_world()
    run = Run(world, tmp_path)
    done: list[int] = []

    def tracker(record: Any) -> None:
        done.append(record["round"])
        if len(done) == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), SequentialEngine(world) as engine:
        train(run, engine, tracker, save_every=1e9)
    again = Run(world, tmp_path)
    again.resume()
    assert again.server.round == 2


CUT_OFF_ONCE = """
from pathlib import Path
def cut(r):
    saved, cut = Path("a run", "resume.pt"), Path("cut")
    if saved.exists() and not cut.exists():
        cut.touch()
        raise KeyboardInterrupt
    return combine(r)
ALGORITHM = Algorithm("a", "b", cut)
def net(input_shape, classes): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, classes))
def data():
    samples = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    return samples, samples
"""


@pytest.mark.long
def test_the_line_that_goes_on_with_a_run_of_own_code_runs(here: Path) -> None:
    (here / "mine.py").write_text(HEAD + CUT_OFF_ONCE)
    (here / "local data").mkdir()
    own = ["--model", "mine:net", "--dataset", "mine:data", "--algorithm", "mine:ALGORITHM"]
    how = ["--data-root", "local data", "--engine", "batched", "--save-every", "0.0", "--keep-clients", "1,3"]
    begun = flatlab(
        "train", *own, "--clients", 2, "--partition", "iid", "--rounds", 3, *how, "--out", "a run", cwd=here
    )
    assert begun.returncode == 130, begun.stderr
    line = shlex.split(begun.stderr.partition("Go on with: ")[2])
    assert line[:5] == ["flatlab", "train", "--resume", "--out", "a run"]
    assert all(word in line for word in (*own, *how))
    went_on = flatlab(*line[1:], cwd=here)
    assert went_on.returncode == 0, went_on.stderr
    assert re.search("after round [12] of 3: going on", went_on.stderr)  # saves are written beside the rounds
    assert {path.name for path in (here / "a run").glob("clients-*")} == {"clients-0001.pt", "clients-0003.pt"}
    following = shlex.split(went_on.stdout.partition("Next:")[2])
    assert flatlab(*following[1:], cwd=here).returncode == 0


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_short_run_whose_rate_ends_at_zero_is_tried_in_its_own_rounds(
    rounds: int, own_world: MakeWorld, tmp_path: Path
) -> None:
    code = "ALGORITHM = Algorithm('a', 'b', lambda r: (W(r) + 0 * (r.w * (1 / r.eta)), {}))"
    world = tried(own_world(code, rounds=rounds, lr_schedule="cosine"))
    assert after(world, tmp_path, rounds).isfinite().all()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_server_adds_up_on_one_thread(engine: str, own_world: MakeWorld, tmp_path: Path) -> None:
    code = "ALGORITHM = Algorithm('a', 'b', lambda r: (0 * W(r) + torch.get_num_threads(), {}))"
    world = tried(own_world(code))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert after(world, tmp_path, 1, engine).unique().tolist() == [1.0]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
