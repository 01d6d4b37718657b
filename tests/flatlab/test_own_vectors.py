"""Vectors of methods of one's own: each has its own storage, and every engine keeps what the functions return."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flatlab.federated.algorithms.base import Round
from flatlab.federated.engine.base import Engine
from flatlab.federated.engine.batched import BatchedEngine
from flatlab.federated.engine.process import ProcessEngine
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.engine.streams import StreamsEngine
from flatlab.federated.participants import most_participants
from flatlab.federated.rounds import Run
from flatlab.federated.server_calls import combine, further_models
from flatlab.federated.trial import tried
from flatlab.federated.world import World
from flatlab.functions import let_run

ENGINES: dict[str, Callable[[World], Engine]] = {
    "process": lambda world: ProcessEngine(world, 2, most_participants(world.config)),
    "batched": lambda world: BatchedEngine(world, torch.device("cpu")),
    "streams": lambda world: StreamsEngine(world, torch.device("cpu"), slots=2),
}


METHOD = """
from flatlab.federated.algorithms.base import Algorithm, Terms, weighted_mean

def combine(round_):
    w = weighted_mean(round_)
    return w, {"m": w - round_.w, "s": 0.9 * round_.server["s"]}

def during(client, ascent):
    return {"p": ascent, "q": client.own["p"]}

def keep(client, delta):
    return {**client.own, "began": client.w.clone(), "h": delta, "old": client.own["h"]}

ALGORITHM = Algorithm(
    "mine", "nowhere", combine, own=("began", "h", "old", "p", "q"), server=("m", "s"), keep=keep,
    terms=lambda client: Terms(gradient=client.server["s"]),
    initial=lambda w_0, hyper: {"began": w_0, "m": w_0, "s": w_0.new_ones(())},
    PASSES
)
"""
PASSES = {
    "one": 'lookahead=lambda client, theta, k: 0.5 * client.server["m"],',
    "two": "ascent=lambda client, theta, g: 0.1 * g, during=during, exact_steps=True, "
    "rate=lambda client, k: 1 - (k + 1) / client.K,",
}
"""Its functions return one vector (P,) for every client of a stack, and, under another name, what they are given.

The server's vector s has no dimension. The learning rate of the last step is 0.
"""


@pytest.fixture(params=PASSES)
def world(request: pytest.FixtureRequest, here: Path, toy_world: Callable[..., World]) -> World:
    module = f"mine_{request.param}"  # a module is imported once
    (here / f"{module}.py").write_text(METHOD.replace("PASSES", PASSES[request.param]))
    let_run(f"{module}:ALGORITHM")
    return tried(toy_world(algorithm=f"{module}:ALGORITHM", participation=1.0))


@pytest.mark.long
def test_one_vector_for_every_client_is_the_same_in_every_engine(world: World, tmp_path: Path) -> None:
    """Five models are more than the processes evaluate at once."""
    found = {}
    for name, engine in {"sequential": SequentialEngine, **ENGINES}.items():
        run = Run(world, tmp_path / name)
        with engine(world) as opened:
            first = run.step(opened)
            run.keep(first)
            second = run.step(opened)
            scores = opened.evaluate([second.server.w * i for i in range(5)])
        torch.testing.assert_close(second.outputs.after["old"], first.outputs.after["h"])
        torch.testing.assert_close(second.outputs.after["began"], first.server.w.expand(6, -1))
        losses = torch.tensor([score.loss for score in scores], dtype=torch.float64)
        found[name] = torch.cat([second.server.w, losses, second.outputs.after["q"].flatten()])
    for numbers in found.values():
        torch.testing.assert_close(numbers, found["sequential"])


def test_every_vector_has_storage_of_its_own(world: World) -> None:
    w = torch.ones(4)
    own, server = world.initial(w)
    vectors = [w, *own.values(), *server.values()]
    assert len({vector.data_ptr() for vector in vectors}) == len(vectors) == 8
    assert torch.equal(own["began"], w)
    assert torch.equal(own["old"], torch.zeros(4))


ANYWHERE = """
import torch
from flatlab.federated.algorithms.base import Algorithm, weighted_mean

def combine(round_):
    return weighted_mean(round_), {"c": torch.tensor([0.5], dtype=torch.float64)}

ALGORITHM = Algorithm(
    "anywhere", "nowhere", combine, server=("c",), initial=lambda w_0, hyper: {"c": w_0[:1] * 0},
    models=lambda w, server: {"ones": torch.ones(len(w), dtype=torch.float64)},
)
"""


def test_what_the_servers_functions_make_goes_where_the_model_is(here: Path, toy_world: Callable[..., World]) -> None:
    """On a GPU they may well return tensors of the CPU."""
    (here / "anywhere.py").write_text(ANYWHERE)
    let_run("anywhere:ALGORITHM")
    config = toy_world(algorithm="anywhere:ALGORITHM").config
    w, samples = (torch.ones(shape, dtype=torch.float64, device="meta") for shape in (5, (2, 1)))
    round_: Round[Any] = Round(
        w, w.expand(2, -1), samples, samples, {}, {}, {"c": w[:1]}, config.hyperparameters, N=2, t=0, eta=0.1, K=1
    )
    after, vectors = combine(config, round_)
    models = further_models(config, 1, w, vectors)
    assert {x.device.type for x in (after, vectors["c"], models["ones"])} == {"meta"}
