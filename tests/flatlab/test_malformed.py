"""Files that are wrong by structure: they work or are refused in one sentence; and nothing in a file is run unasked."""

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.mutations import KINDS, Workbench, _copy_unfinished, command, opened
from benchmarks.oddities import CANARY, toml_text
from flatlab.errors import UsageError, shown
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.config import make_config
from flatlab.federated.models import mlp
from flatlab.federated.participants import most_participants, sample_clients
from flatlab.functions import require_named
from flatlab.grid.plan import parse_grid
from flatlab.measuring.trace import Probing
from flatlab.runs.checkpoint import load_checkpoint, rebuild
from tests.command_line import flatlab

EACH = 12
"""Mutations of every kind; `python -m benchmarks mutations` does 10,000."""

LONG = {"kept clients"}
"""Those of which one that is read is measured for seconds."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        with opened(tmp_path_factory.mktemp("sound")) as bench:
            yield bench


@pytest.mark.parametrize("kind", [*sorted(set(KINDS) - LONG), *(pytest.param(k, marks=pytest.mark.long) for k in LONG)])
def test_a_mutated_file_works_or_is_refused_in_one_sentence(kind: str, bench: Workbench) -> None:
    begin = random.SystemRandom().randrange(2**40)
    for seed in range(begin, begin + EACH):
        what, outcome = bench.attempt(kind, random.Random(seed))
        assert not outcome.fault, f"{kind} of seed {seed}, {what}: {outcome.fault}"


def test_what_finds_faults_would_find_one(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatlab.grid.reproduction.parse_grid", lambda text, name: 1 / 0)
    assert "Unexpected ZeroDivisionError" in command("reproduce", "g.toml", "--dry-run").fault
    monkeypatch.setattr("flatlab.grid.reproduction.parse_grid", lambda text, name: os.mkdir(CANARY))
    assert "code ran" in command("reproduce", "g.toml", "--dry-run").fault


def test_a_tolerance_whose_square_vanishes_takes_as_many_products_as_there_may_be() -> None:
    assert Probing(tol=1e-200).products == Probing().max_probes


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("participation = 1e-12\nsampling = 'bernoulli'", "participation = 1e-12 of 20 clients"),
        ("clients = 100000", "100000 clients cannot share"),
    ],
)
def test_a_run_that_could_not_begin_is_refused(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    done = flatlab("train", "--config", "c.toml", "--out", "r", cwd=tmp_path)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Unexpected" not in done.stderr


@pytest.mark.parametrize(
    "fields",
    [
        *({"algorithm": name, "hyper": {key: bad}}
          for name, rules in ALGORITHMS.items() for key in rules.hyper.model_fields
          for bad in (-1.0, True, "1", float("inf"), [1.0])),
        *({key: bad} for key in ("rounds", "clients", "local_epochs", "batch_size", "train_samples", "checkpoint_every")
          for bad in (0, -1, True, 1.0, 1e9, 2**31, "3", [3], 10**30)),
        *({key: bad} for key in ("lr", "delta", "clip", "zeta", "weight_decay", "participation")
          for bad in (-1, True, "0.1", float("nan"), [0.1])),
        {"hidden": [2.0]}, {"hidden": [True]}, {"hidden": 4}, {"hidden": [2**31]}, {"man": 1}, {"seed": True},
        {"dataset": "a\nb"}, {"dataset": ""}, {"dataset": "a" * 300}, {"model": "\x1b[31m"}, {"delta": 1e300},
        {"hyper": [1]}, {"algorithm": None}, {"algorithm": {}}, {1: 2}, [1], 3, None,
        {"participation": 1e-12}, {"participation": 1e-12, "sampling": "bernoulli"},
    ],
)  # fmt: skip
def test_fields_outside_their_range_are_refused(fields: Any) -> None:
    with pytest.raises(UsageError) as caught:
        make_config(fields)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_whole_numbers_do_for_real_ones() -> None:
    assert make_config({"lr": 1, "zeta": 0, "algorithm": "fedprox", "hyper": {"mu": 2}}).hyper == {"mu": 2.0}


def test_a_hyperparameter_is_named_with_its_table() -> None:
    with pytest.raises(UsageError, match=r"hyper\.rho = -5 does not fit: input should be greater than or equal to 0"):
        make_config({"algorithm": "fedsam", "hyper": {"rho": -5}})


def test_most_participants_answers_at_once_and_bounds_every_round() -> None:
    config = make_config({"sampling": "bernoulli", "participation": 0.1, "clients": 50, "rounds": 30})
    drawn = [len(sample_clients(config, t)) for t in range(30)]
    assert most_participants(config) == max(drawn)
    long = config.model_copy(update={"rounds": 10**9})
    assert most_participants(long) == 50
    assert most_participants(long.model_copy(update={"sampling": "fixed"})) == 5


def test_an_mlp_that_no_memory_holds_is_refused() -> None:
    with pytest.raises(UsageError, match="choose narrower layers"):
        mlp((1, 8, 8), 10, [2**20, 2**20])


def test_values_are_quoted_on_one_line() -> None:
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown("x" * 10**6)) < 100
    assert len(shown([[[1] * 1000] * 1000] * 1000)) < 200
    assert shown(10**5000) == "a int"
    assert shown(torch.zeros(3)) == "a Tensor"


# ------------------------------------------------------------------ code runs only where the command line names it


def _refuses_to_import(*words: str) -> None:
    """The command runs the function that its file names only where the command line names it too."""
    outcome = command(*words)
    assert (outcome.code, outcome.fault) == (2, "")
    assert outcome.said.endswith(f"add --model {CANARY}:run.")
    assert "code ran" in command(*words, "--model", f"{CANARY}:run").fault
    sys.modules.pop(CANARY)


def _of_any_model(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "hidden"}


def test_a_file_does_not_choose_what_is_imported(bench: Workbench) -> None:
    named = {"model": f"{CANARY}:run"}
    Path("c.toml").write_text(toml_text({**_of_any_model(bench.sound["configuration"]), **named}))
    _refuses_to_import("train", "--config", "c.toml", "--out", "imported")
    grid = bench.sound["grid"]
    Path("g.toml").write_text(toml_text({**grid, "common": {**_of_any_model(grid["common"]), **named}}))
    _refuses_to_import("reproduce", "g.toml", "--dry-run", "--out", "cells")
    good = bench.sound["checkpoint"]
    torch.save({**good, "config": {**good["config"], **named}}, "odd.pt")
    _refuses_to_import("eigs", "odd.pt", "--samples", "12")
    shutil.copytree("run", "foreign", ignore=shutil.ignore_patterns("final.pt"))
    Path("foreign/config.toml").write_text(toml_text({**good["config"], **named}))
    _refuses_to_import("train", "--resume", "--out", "foreign")


def test_what_follows_a_run_names_its_model(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef net(input_shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, classes))\n"
    )
    words = ("--set", "train_samples=90", "--clients", "3", "--rounds", "1", "--workers", "1", "--out", "r")
    done = flatlab("train", "--model", "mine:net", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "flatlab eigs r/final.pt --model mine:net" in done.stdout


def test_a_proposed_command_is_safe_to_paste() -> None:
    with pytest.raises(UsageError, match=r"add --model 'a:b; rm -rf x'"):
        require_named("a:b; rm -rf x", None, "The configuration c.toml")


# ------------------------------------------------------------------ tensors


ODD: dict[str, Callable[[Tensor], object]] = {
    "a sparse coo tensor": lambda x: x.to_sparse(),
    "a sparse csr tensor": lambda x: x.to_sparse_csr(),
    "a meta tensor": lambda x: x.to("meta"),
    "a tensor of complex64": lambda x: x.to(torch.complex64),
    "a tensor of float8_e5m2": lambda x: x.to(torch.float8_e5m2),
    "that share the memory of fewer": lambda x: torch.zeros(1).expand(10**6, 10**6),
    "is 'x' and no tensor": lambda x: "x",
    "do not fit its model": lambda x: x[:1],
    "not finite": lambda x: torch.full_like(x, float("inf")),
}


@pytest.mark.parametrize("said", ODD)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds_are_refused_by_name(said: str, bench: Workbench) -> None:
    good = bench.sound["checkpoint"]
    name = next(iter(good["state_dict"]))
    torch.save({**good, "state_dict": {**good["state_dict"], name: ODD[said](good["state_dict"][name])}}, "odd.pt")
    with pytest.raises(UsageError, match=said) as caught:
        rebuild(load_checkpoint(Path("odd.pt")))
    assert name in str(caught.value)


@pytest.mark.parametrize("odd", [torch.zeros(2), None, 1, "yes", [True]])
def test_where_vectors_are_is_true_or_false(odd: Any, bench: Workbench) -> None:
    _copy_unfinished()
    torch.save({**bench.sound["resume"], "at_nodes": odd}, "again/resume.pt")
    outcome = command("train", "--resume", "--workers", "1", "--out", "again")
    assert outcome.code == 2
    assert "at_nodes is" in outcome.said
    assert not outcome.fault


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"config": [1]}, "the checkpoint odd.pt"),
        ({"version": "one"}, "version is 'one' and no whole number"),
        ({"version": True}, "version is True"),
        ({"round": 10**30}, "round is"),
        ({"state_dict": {1: torch.zeros(2)}}, "state_dict has the name 1"),
        ({"models": {"server": 3}}, r"models\.server is 3 and no table"),
        ({"metrics": {"a": torch.zeros(2)}}, r"metrics\.a is a Tensor, not plain data"),
        ({"metrics": {"test_accuracy": 37.0}}, "no share between 0 and 1"),
        ({"provenance": [1]}, "provenance is"),
    ],
)
def test_parts_of_other_types_are_refused_by_name(edit: dict[str, Any], said: str, bench: Workbench) -> None:
    torch.save({**bench.sound["checkpoint"], **edit}, "odd.pt")
    with pytest.raises(Exception, match=said) as caught:
        load_checkpoint(Path("odd.pt"))
    assert "odd.pt" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('title = "t"\n[common]\nhyper = 3\n', "hyper = 3"),
        ('title = "a\\u001b[31m"\n', "title does not fit: it holds control characters"),
        ('title = "t"\ntarget_accuracy = nan\n', "target_accuracy does not fit"),
        ('title = "t"\n[sensitivity]\nzetas = [-0.5]\n', r"sensitivity\.zetas\.0 does not fit"),
        ('title = "t"\n[measure]\nsurface_points = 1000000\n', r"measure\.surface_points does not fit"),
        ('title = "t"\n[measure]\nsamples = true\n', r"measure\.samples does not fit"),
        (f'title = "t"\n[common]\nrounds = {"9" * 5000}\n', "not valid TOML"),
        (f'title = "t"\nx = {"[" * 5000}', "not valid TOML"),
    ],
)
def test_a_grid_s_mistakes_are_named(text: str, said: str) -> None:
    axes = '[axes]\nalgorithms = ["fedavg"]\npartitions = ["iid"]\nseeds = [0]\n'
    with pytest.raises(UsageError, match=said) as caught:
        parse_grid(f"{text}\n{axes}", "odd.toml")
    assert "odd.toml" in str(caught.value)
