"""Server SWA: the average of the late models, its cycles of the learning rate, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatlab.errors import UsageError
from flatlab.federated.algorithms.base import Algorithm, Hyper, Round
from flatlab.federated.config import make_config
from flatlab.federated.rounds import Run
from flatlab.federated.server_average import averaging
from flatlab.federated.world import World
from tests.flatlab.test_algorithms import ENGINES, run_rounds
from tests.flatlab.test_method_identities import vectors


@pytest.mark.parametrize("name", ["fedavg", "feddyn", "fedwmsam"])
def test_server_swa_is_the_mean_of_every_second_model_from_the_middle_on(
    name: str, toy_world: Callable[..., World], tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"algorithm": name, "rounds": 8, "lr_decay": 0.9}
    world = toy_world(**fields, swa_start=0.5, swa_every=2, report="swa")
    run = Run(world, tmp_path / "a")
    taken = []
    with ENGINES["sequential"](world) as engine:
        for t in range(8):
            run.advance(engine)
            if t + 1 in (6, 8):
                taken.append(run.server.w)
            expected = torch.stack(taken).mean(0) if taken else run.server.w
            torch.testing.assert_close(run.models()["swa"], expected, rtol=1e-12, atol=1e-14)
    assert run.reported == "swa"
    plain = toy_world(**fields)
    rates = [world.config.learning_rate(t) / plain.config.learning_rate(t) for t in range(4)]
    assert rates == [1.0] * 4  # before the middle nothing changes
    assert world.config.learning_rate(4) == pytest.approx(plain.config.learning_rate(4) / 2 + 0.5e-4)
    assert world.config.learning_rate(5) == pytest.approx(1e-4)


def test_the_average_of_models_that_stand_still_is_the_model() -> None:
    rules = averaging(Algorithm("still", "nobody", lambda round_: (round_.w, {})), 1, 2)
    (w,) = vectors(1)
    server = {"swa": torch.zeros_like(w), **rules.initial(w, Hyper())}
    ones = torch.ones(1, 1)
    for t in range(6):
        _, server = rules.combine(Round(w, w[None], ones, ones, {}, {}, server, Hyper(), 1, t))
    assert float(server["swa_count"]) == 2
    torch.testing.assert_close(rules.models(w, server)["swa"], w, rtol=1e-15, atol=0)


def test_a_period_of_one_round(toy_world: Callable[..., World], tmp_path: Path) -> None:
    plain = run_rounds(toy_world(rounds=4), tmp_path / "plain", 4)[-1]
    each = run_rounds(toy_world(rounds=4, swa_start=0.5, swa_every=1), tmp_path / "each", 4)[-1]
    torch.testing.assert_close(each.w, plain.w, rtol=0, atol=0)  # no cycles of one round
    assert float(each.vectors["swa_count"]) == 2


@given(rounds=st.integers(1, 40), start=st.floats(0.01, 0.99), every=st.integers(1, 45))
def test_an_average_of_no_model_is_refused(rounds: int, start: float, every: int) -> None:
    """It would be the server's last model under another name."""
    taken = [t for t in range(1, rounds + 1) if (since := t - round(start * rounds)) > 0 and since % every == 0]
    fields = {"rounds": rounds, "swa_start": start, "swa_every": every}
    if taken:
        assert make_config(fields).swa_start == start
    else:
        with pytest.raises(UsageError, match="average no model"):
            make_config(fields)
