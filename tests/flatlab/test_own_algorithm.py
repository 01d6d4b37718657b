"""A method in a user's own file: its page from FedAvg to a table, every engine, and its mistakes in one sentence."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from flatlab.errors import UsageError
from flatlab.federated.algorithm_trial import _Trial
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.config import RunConfig, make_config
from flatlab.federated.engine.base import Engine
from flatlab.federated.engine.batched import BatchedEngine
from flatlab.federated.engine.process import ProcessEngine
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.engine.streams import StreamsEngine
from flatlab.federated.own_algorithm import find_algorithm, short_name
from flatlab.federated.participants import most_participants
from flatlab.federated.rounds import Run
from flatlab.federated.trial import tried
from flatlab.federated.world import DTYPES, World
from flatlab.functions import let_run
from flatlab.grid.reproduction import Where, read_reproduction
from flatlab.runs.checkpoint import load_checkpoint
from flatlab.runs.folder import RunFolder
from tests.command_line import ROOT, flatlab

PAGE = (ROOT / "docs" / "questions" / "own-method.md").read_text()
PLAIN, ANCHOR, CHECK = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
(GRID,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
COMMANDS = [line.split()[1:] for line in re.findall(r"^flatlab .*$", PAGE, flags=re.MULTILINE)]
SMALL = ["--set", "train_samples=200", "--clients", "6", "--workers", "2"]
HEAD = "from flatlab.federated.algorithms.base import Algorithm, Hyper, Terms\n"


def run(*words: object, folder: Path, code: int = 0) -> str:
    done = flatlab(*words, cwd=folder)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def state(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).state_dict


@pytest.mark.long
def test_its_page_leads_from_fedavg_to_a_table(here: Path) -> None:
    train_plain, train_anchored, measure, compare = COMMANDS
    (here / "anchor.py").write_text(PLAIN)
    run(*train_plain, *SMALL, folder=here)
    run("train", "--rounds", 5, "--out", "fedavg", *SMALL, folder=here)
    plain, fedavg = state(here / "plain/final.pt"), state(here / "fedavg/final.pt")
    assert all(torch.equal(plain[name], fedavg[name]) for name in fedavg)
    (here / "anchor.py").write_text(ANCHOR)
    run(*train_anchored, *SMALL, folder=here)
    anchored = load_checkpoint(here / "anchored/final.pt")
    assert anchored.config.hyper == {"mu": 0.05, "beta": 0.9}
    assert "anchor:ALGORITHM" in run(*train_anchored, *SMALL, folder=here)  # finished: taken as it is
    grid = GRID.replace("[common]", "[common]\ntrain_samples = 200\nclients = 6").replace("0, 1, 2", "0, 1")
    (here / "compare.toml").write_text(grid)
    run(*compare, "--jobs", 2, folder=here)
    table = pd.read_csv(here / "compared/tables/trace.csv")
    assert list(table["algorithm"]) == ["fedavg", "anchor:ALGORITHM"]
    assert (here / "compared/anchor-man-s1/final.eigs.json").exists()
    exec(CHECK, {})  # our own document
    (here / "anchor.py").unlink()  # what was trained is measured without its method's file
    run(*measure, "--samples", 50, folder=here)
    run("report", "compared", folder=here)


def test_every_engine_and_resuming_follow_its_equations(
    here: Path, toy_world: Callable[..., World], tmp_path: Path
) -> None:
    (here / "anchor.py").write_text(ANCHOR)
    let_run("anchor:ALGORITHM")
    world = tried(toy_world(algorithm="anchor:ALGORITHM", hyper={"mu": 0.3, "beta": 0.5}, man=True))
    likewise = tried(toy_world(algorithm="fedprox", hyper={"mu": 0.3}, man=True))
    engines: dict[str, Engine] = {
        "sequential": SequentialEngine(world),
        "process": ProcessEngine(world, 2, most_participants(world.config)),
        "batched": BatchedEngine(world, torch.device("cpu")),
        "streams": StreamsEngine(world, torch.device("cpu"), 2),
    }
    for name, engine in engines.items():
        run_ = Run(world, tmp_path / name)
        prox = Run(likewise, tmp_path / f"{name}-prox")
        with engine, SequentialEngine(likewise) as other:
            first = run_.server.w
            run_.advance(engine)
            prox.advance(other)
            torch.testing.assert_close(run_.server.w, prox.server.w)  # in round 1 the anchor is w, as FedProx has it
            torch.testing.assert_close(run_.server.vectors["a"], (first + run_.server.w) / 2)
            run_.save()
            run_.advance(engine)
            again = Run(world, tmp_path / name)
            again.resume()
            again.advance(engine)
        assert torch.equal(again.server.w, run_.server.w)
        assert torch.equal(again.server.vectors["a"], run_.server.vectors["a"])


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_trial_takes_what_is_right(name: str) -> None:
    for dtype in DTYPES:
        config = RunConfig.model_validate({"algorithm": name, "clients": 3, "dtype": dtype, "report": "selected"})
        _Trial(config, DTYPES[dtype]).run()


def hyper(field: str) -> str:
    """An algorithm whose hyperparameter is declared so."""
    return f"from pydantic import Field\nclass H(Hyper):\n    {field}\nALGORITHM = Algorithm('a', 'b', combine, H)"


GOOD = "def combine(r):\n    return r.theta.mean(0), {}\n"
MISTAKES = {
    "raised NameError: name 'oops' is not defined .mine.py, line 3": "def combine(r):\n    return oops, {}\n"
    "ALGORITHM = Algorithm('a', 'b', combine)",
    "combine returns no pair": "ALGORITHM = Algorithm('a', 'b', lambda r: r.w)",
    "combine returns a w that is no tensor": "ALGORITHM = Algorithm('a', 'b', lambda r: (r.theta, {}))",
    "combine returns something else than a dictionary of its vectors .h.": GOOD
    + "ALGORITHM = Algorithm('a', 'b', combine, server=('h',))",
    "terms returns no Terms": GOOD + "ALGORITHM = Algorithm('a', 'b', combine, terms=lambda c: 3)",
    "keep returns something else than a dictionary of its vectors .h.": GOOD
    + "ALGORITHM = Algorithm('a', 'b', combine, own=('h',))",
    "initial returns vectors that neither": GOOD
    + "ALGORITHM = Algorithm('a', 'b', combine, initial=lambda w, hyper: {'h': w})",
    "in a stack .C, P. another result": GOOD
    + "ALGORITHM = Algorithm('a', 'b', combine, ascent=lambda c, theta, g: 0.1 * g / g.norm())",
    "ascent returns something else": GOOD
    + "ALGORITHM = Algorithm('a', 'b', combine, ascent=lambda c, theta, g: g.norm())",
    "start returns something else": GOOD
    + "ALGORITHM = Algorithm('a', 'b', combine, start=lambda w, server, hyper, t: 0.0)",
    "during returns something else": GOOD + "ALGORITHM = Algorithm('a', 'b', combine, own=('h',), "
    "keep=lambda c, delta: dict(c.own), ascent=lambda c, theta, g: g, during=lambda c, eps: eps)",
    "initial returns no dictionary": GOOD + "ALGORITHM = Algorithm('a', 'b', combine, initial=lambda w, hyper: w)",
    "models returns something else": GOOD + "ALGORITHM = Algorithm('a', 'b', combine, models=lambda w, server: w)",
    "models returns a model called 'swa', as the run calls": GOOD
    + "ALGORITHM = Algorithm('a', 'b', combine, models=lambda w, server: {'swa': w})",
    "models returns a model called 'a/b': a name of": GOOD
    + "ALGORITHM = Algorithm('a', 'b', combine, models=lambda w, server: {'a/b': w})",
    "start changes w in place: return a new tensor": GOOD
    + "ALGORITHM = Algorithm('a', 'b', combine, start=lambda w, server, hyper, t: w.mul_(0.5))",
    "combine changes round_.theta in place": "def combine(r):\n    return r.theta.sub_(r.w).sum(0), {}\n"
    "ALGORITHM = Algorithm('a', 'b', combine)",
    "combine changes round_.server.'m'. in place": "def combine(r):\n    m = r.server['m'].mul_(0.9)\n"
    "    return r.w + m, {'m': m}\nALGORITHM = Algorithm('a', 'b', combine, server=('m',))",
    "models changes server.'m'. in place": "def combine(r):\n    return r.w, dict(r.server)\n"
    "def models(w, server):\n    server['m'] = w\n    return {}\n"
    "ALGORITHM = Algorithm('a', 'b', combine, server=('m',), models=models)",
    "keep changes client.own.'h'. in place": GOOD
    + "ALGORITHM = Algorithm('a', 'b', combine, own=('h',), keep=lambda c, delta: {'h': c.own['h'].add_(delta)})",
    "initial returns a vector n that is no tensor of float64": GOOD + "import torch\n"
    "ALGORITHM = Algorithm('a', 'b', combine, server=('n',), initial=lambda w, h: {'n': torch.zeros(1).long()})",
    "initial returns a vector h that is no tensor .5,. of float64": GOOD
    + "ALGORITHM = Algorithm('a', 'b', combine, own=('h',), initial=lambda w, hyper: {'h': w[:1]})",
    "rate raised TypeError": GOOD + "ALGORITHM = Algorithm('a', 'b', combine, rate=lambda c: 1)",
    "Terms hold, raised RuntimeError": GOOD + "import torch\nALGORITHM = Algorithm('a', 'b', combine, "
    "terms=lambda c: Terms(constant=torch.zeros(7)))",
    "combine gives two results for the same arguments: keep its state": "N = [0]\ndef combine(r):\n    N[0] += 1\n"
    "    return r.w + (r.theta.mean(0) - r.w) / N[0], {}\nALGORITHM = Algorithm('a', 'b', combine)",
    "terms gives two results for the same arguments": GOOD + "import random\n"
    "ALGORITHM = Algorithm('a', 'b', combine, terms=lambda c: Terms(proximal=random.random()))",
    "is of type dict; it must be an Algorithm": "ALGORITHM = {}",
    "has no ALGORITHM": "",
    "has as its hyper a dict": GOOD + "ALGORITHM = Algorithm('a', 'b', combine, {})",
    "need defaults that fit: mu: field required": GOOD + hyper("mu: float"),
    "need defaults that fit: mu: input should be less than or equal to 1": GOOD + hyper("mu: float = Field(5.0, le=1)"),
    "need defaults that fit: 'mu' must be a finite number": GOOD + hyper("mu: float | None = None"),
    "mu of the algorithm 'mine:ALGORITHM' has an alias": GOOD + hyper("mu: float = Field(0.5, alias='lambda')"),
    "an ascent and a lookahead": GOOD
    + "ALGORITHM = Algorithm('a', 'b', combine, ascent=lambda c, t, g: g, lookahead=lambda c, t, k: t)",
    "a during, which follows an ascent, and no ascent": GOOD
    + "ALGORITHM = Algorithm('a', 'b', combine, during=lambda c, eps: {})",
    "exact_steps = 'no': it is True or False": GOOD + "ALGORITHM = Algorithm('a', 'b', combine, exact_steps='no')",
    "has keep = 3: it is a function": GOOD + "ALGORITHM = Algorithm('a', 'b', combine, keep=3)",
    "has combine = None: it is a function": "ALGORITHM = Algorithm('a', 'b', None)",
    "'h', 'h'., which names a vector twice": GOOD + "ALGORITHM = Algorithm('a', 'b', combine, own=('h', 'h'))",
    "its combine raised SystemExit: 3 .mine.py, line": "def combine(r):\n    raise SystemExit(3)\n"
    "ALGORITHM = Algorithm('a', 'b', combine)",
    "name its vectors in a tuple": GOOD + "ALGORITHM = Algorithm('a', 'b', combine, own='h')",
    "importing mine raised SyntaxError": "def (",
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_named_before_round_1(said: str, here: Path, toy_world: Callable[..., World]) -> None:
    (here / "mine.py").write_text(HEAD + MISTAKES[said])
    let_run("mine:ALGORITHM")
    with pytest.raises(UsageError, match=said):
        tried(toy_world(algorithm="mine:ALGORITHM"))


def test_types_are_those_of_the_run_and_norms_are_looked_at_closely(
    here: Path, toy_world: Callable[..., World]
) -> None:
    """In a run in float32, an average in float64 is refused, and a constant in float32 is not."""
    norm = "lambda c, theta, g: 0.1 * g / g.norm()"
    (here / "mine.py").write_text(
        f"{HEAD}{GOOD}import torch\nTABLE = torch.eye(5)\n"
        "DOUBLE = Algorithm('a', 'b', lambda r: (r.theta.double().mean(0), {}))\n"
        "SINGLE = Algorithm('a', 'b', combine, terms=lambda c: Terms(constant=TABLE @ c.w))\n"
        f"NORM = Algorithm('a', 'b', combine, ascent={norm})\n"
        "COUNT = Algorithm('a', 'b', lambda r: (r.theta.mean(0), dict(r.server)), server=('n',), "
        f"initial=lambda w, hyper: {{'n': torch.zeros(1)}}, ascent={norm})\n"
    )
    said = {
        "DOUBLE": r"combine returns a w that is no tensor \(5,\) of float32",
        "NORM": "in a stack .C, P. another result",
        "COUNT": "in a stack .C, P. another result",
    }
    for name in ("SINGLE", *said):
        let_run(f"mine:{name}")
        world = toy_world(algorithm=f"mine:{name}", dtype="float32", lr=1e-4)
        if name in said:
            with pytest.raises(UsageError, match=said[name]):
                tried(world)
        else:
            tried(world)


def test_no_vector_is_called_as_the_average(here: Path, toy_world: Callable[..., World]) -> None:
    (here / "mine.py").write_text(
        f"{HEAD}def combine(r):\n    return r.theta.mean(0), dict(r.server)\n"
        "ALGORITHM = Algorithm('a', 'b', combine, server=('swa',))"
    )
    let_run("mine:ALGORITHM")
    tried(toy_world(algorithm="mine:ALGORITHM"))
    with pytest.raises(UsageError, match="calls a vector of the server 'swa', as the average"):
        tried(toy_world(algorithm="mine:ALGORITHM", swa_start=0.4, swa_every=1))


def test_further_models_are_evaluated_and_kept(here: Path) -> None:
    (here / "mine.py").write_text(
        f"{HEAD}{GOOD}ALGORITHM = Algorithm('a', 'b', combine, "
        "models=lambda w, server: {f'x{i}': (1 + i) * w for i in range(4)})"
    )
    small = ["--rounds", 1, "--clients", 2, "--set", "train_samples=60", "--set", "hidden=[4]", "--workers", 1]
    said = run("train", "--algorithm", "mine:ALGORITHM", "--out", "out", *small, folder=here)
    assert "x3: a further model of mine:ALGORITHM." in said
    kept = load_checkpoint(here / "out/final.pt")
    assert list(kept.models) == ["x0", "x1", "x2", "x3"]
    record = RunFolder(here / "out").metrics.read()[-1]
    assert list(record["models"]) == ["server", "x0", "x1", "x2", "x3"]
    assert record["models"]["x0"] == record["models"]["server"]
    assert record["models"]["x3"] != record["models"]["server"]


def test_a_mistake_is_one_sentence_on_the_command_line(here: Path) -> None:
    (here / "mine.py").write_text(HEAD + MISTAKES["combine returns no pair"])
    assert run("train", "--algorithm", "mine:ALGORITHM", folder=here, code=2).count("\n") == 1
    assert not (here / "checkpoints").exists()
    (here / "anchor.py").write_text(ANCHOR)
    said = run("train", "--algorithm", "anchor:ALGORITHM", "--set", "mu=-1", folder=here, code=2)
    assert "hyper.mu = -1 does not fit" in said
    said = run("train", "--algorithm", "anchor:ALGORITHM", "--set", "hyper.nu=1", folder=here, code=2)
    assert "anchor:ALGORITHM has no hyperparameter 'nu' (it has: mu, beta)" in said


def test_a_validator_that_changes_what_it_returned_is_refused(here: Path) -> None:
    """It would change a value once more whenever the run's files are read."""
    (here / "mine.py").write_text(
        HEAD + "from pydantic import field_validator\n" + GOOD + "class H(Hyper):\n    percent: float = 50.0\n"
        "    @field_validator('percent')\n    @classmethod\n    def share(cls, v):\n        return v / 100\n"
        "ALGORITHM = Algorithm('a', 'b', combine, H)\n"
    )
    let_run("mine:ALGORITHM")
    with pytest.raises(UsageError, match=r"makes percent = 0.5 into 0.005 when it is read again"):
        make_config({"algorithm": "mine:ALGORITHM", "hyper": {"percent": 50.0}})


def test_its_hyperparameters_are_set_for_a_whole_grid_by_name(here: Path) -> None:
    hyper = "class H(Hyper):\n    omega: float = 1.0\n"
    (here / "mine.py").write_text(f"{HEAD}{GOOD}{hyper}ALGORITHM = Algorithm('a', 'b', combine, H)")
    axes = 'seeds = [0]\npartitions = ["iid"]\nalgorithms = ["mine:ALGORITHM"]\n'
    (here / "grid.toml").write_text(f'title = "g"\n[axes]\n{axes}')
    where = Where(device="cpu", trusted_algorithms=("mine:ALGORITHM",))
    for cell in read_reproduction("grid.toml", where, settings=["omega=1.5"]).cells:
        assert cell.config.hyper == {"omega": 1.5}
    with pytest.raises(UsageError, match="psi"):
        read_reproduction("grid.toml", where, settings=["psi=1.5"])


def test_no_file_chooses_what_is_imported(here: Path) -> None:
    (here / "evil.py").write_text("raise SystemError('this ran')\n")
    (here / "run.toml").write_text('algorithm = "evil:ALGORITHM"\n')
    axes = '[axes]\nseeds = [0]\npartitions = ["iid"]\nalgorithms = ["evil:ALGORITHM"]\n'
    (here / "grid.toml").write_text(f'title = "g"\n{axes}')
    config = make_config({"algorithm": "evil:ALGORITHM", "hyper": {"mu": 0.5}})  # as a checkpoint has it
    assert config.hyper == {"mu": 0.5}
    with pytest.raises(UsageError, match="to let it run, add --algorithm evil:ALGORITHM"):
        find_algorithm(config.algorithm)
    for words in (["train", "--config", "run.toml"], ["reproduce", "grid.toml"]):
        said = run(*words, folder=here, code=2)
        assert "add --algorithm evil:ALGORITHM" in said
        assert "this ran" not in said


def test_only_plain_values_are_hyperparameters_of_an_unknown_file() -> None:
    for value in (float("nan"), [1.0], {"a": 1}):
        with pytest.raises(UsageError, match="hyper"):
            make_config({"algorithm": "evil:ALGORITHM", "hyper": {"mu": value}})


def test_files_are_called_after_it() -> None:
    assert short_name("mine.fedyogi:ALGORITHM") == "mine.fedyogi"
    assert short_name("mine:OTHER") == "mine-OTHER"
    assert short_name("fedavg") == "fedavg"
