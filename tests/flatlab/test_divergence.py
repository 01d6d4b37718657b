"""A run whose server or clients are no longer finite ends as diverged, and keeps the last state that was."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flatlab.errors import FlatlabError
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.algorithms.base import Client, Round, weighted_mean
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.rounds import Run, train
from flatlab.federated.world import World

ROUNDS = 2
NAN = float("nan")


def nan_last(round_: Round[Any]) -> float:
    return NAN if round_.t == ROUNDS - 1 else 1.0


def bad_w(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    return weighted_mean(round_) * nan_last(round_), {"m": round_.server["m"]}


def bad_vector(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    return weighted_mean(round_), {"m": round_.server["m"] + nan_last(round_) - 1}


def good(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    return weighted_mean(round_), dict(round_.server)


def bad_own(client: Client[Any], delta: Tensor) -> dict[str, Tensor]:
    return {"h": delta * (NAN if client.t == ROUNDS - 1 else 1.0)}


def bad_model(w: Tensor, server: Any) -> dict[str, Tensor]:
    return {"ema": w / server["m"]}  # m is zero


@pytest.mark.parametrize(
    ("rules", "said", "kept"),
    [
        ({"combine": bad_w}, "round 2 at the server .the model server is not finite", 1),
        ({"combine": bad_vector}, "round 2 at the server .the vector m is not finite", 1),
        ({"combine": good, "own": ("h",), "keep": bad_own}, "round 2 at client .* .its vector h is not finite", 1),
        ({"combine": good, "models": bad_model}, "round 1 at the server .the model ema is not finite", 0),
    ],
)
def test_what_is_not_finite_is_never_kept(
    rules: dict[str, Any],
    said: str,
    kept: int,
    toy_world: Callable[..., World],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ALGORITHMS, "fedavg", replace(ALGORITHMS["fedavg"], server=("m",), **rules))
    world = toy_world(rounds=ROUNDS)
    run = Run(world, tmp_path)
    run.begin()
    with SequentialEngine(world) as engine, pytest.raises(FlatlabError, match=f"diverged in {said}"):
        train(run, engine, lambda record: None)
    assert not (tmp_path / "final.pt").exists()
    again = Run(world, tmp_path)
    again.resume()
    assert again.server.round == kept
    assert torch.isfinite(again.server.w).all()


def test_an_average_beyond_float32_is_no_finished_run(toy_world: Callable[..., World], tmp_path: Path) -> None:
    world = toy_world(rounds=1, dtype="float32", algorithm="fedswa", hyper={"alpha": 1e39})
    with SequentialEngine(world) as engine, pytest.raises(FlatlabError, match="diverged in round 1 at the server"):
        train(Run(world, tmp_path), engine, lambda record: None)


@pytest.mark.parametrize(("algorithm", "hyper"), [("fedgloss", {"beta": 1e-300}), ("fedprox", {"mu": 1e300})])
def test_a_coefficient_beyond_float32_diverges(
    algorithm: str, hyper: dict[str, float], toy_world: Callable[..., World], tmp_path: Path
) -> None:
    world = toy_world(rounds=1, dtype="float32", algorithm=algorithm, hyper=hyper)
    with SequentialEngine(world) as engine, pytest.raises(FlatlabError, match="diverged in round 1 at client"):
        train(Run(world, tmp_path), engine, lambda record: None)
