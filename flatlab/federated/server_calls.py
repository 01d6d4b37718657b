"""The server's functions of an algorithm: what they draw is the run's and the round's, what they are given stays.

They add up on one thread, whatever the engine has, so that a run's numbers are no machine's.
A user's own algorithm gets copies of the state, so that whatever it does to them the state of the last round is whole,
and what it returns is looked at in every round.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from flatlab.federated.algorithms.base import Round
from flatlab.federated.config import RunConfig
from flatlab.federated.own_calls import in_round
from flatlab.federated.streams import seeded
from flatlab.torch_settings import one_thread


def start(config: RunConfig, t: int, w: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
    """Where the clients of round t start (P,); raises `FlatlabError` for an own algorithm's mistake."""
    calls, hyper = in_round(config, t), config.hyperparameters
    with one_thread(), seeded(config.seed, "start", t):
        if calls is None:
            return config.rules.start(w, vectors, hyper, t)
        found: Tensor = calls.call("start", w.clone(), _copies(vectors), hyper, t)
        calls.require_start(found, w)
        return found.detach().to(w.device)


def lent(config: RunConfig, vectors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The server's vectors as the clients get them."""
    return vectors if in_round(config, 0) is None else _copies(vectors)


def combine(config: RunConfig, round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The next w and the server's new vectors; raises likewise."""
    calls = in_round(config, round_.t)
    with one_thread(), seeded(config.seed, "combine", round_.t):
        if calls is None:
            return config.rules.combine(round_)
        found = calls.call("combine", replace(round_, w=round_.w.clone(), server=_copies(round_.server)))
        calls.require_combined(found, round_.w, round_.server)
        w = round_.w
        return found[0].detach().to(w.device, copy=True), {n: x.to(w.device) for n, x in _copies(found[1]).items()}


def further_models(config: RunConfig, done: int, w: Tensor, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The algorithm's further models after `done` rounds, by name, each (P,); raises likewise."""
    calls = in_round(config, done - 1)
    with one_thread(), seeded(config.seed, "models", done):
        if calls is None:
            return config.rules.models(w, vectors)
        found: dict[str, Tensor] = calls.call("models", w.clone(), _copies(vectors))
        calls.require_models(found, w)
        return {name: model.to(w.device) for name, model in found.items()}


def _copies(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: vector.detach().clone() for name, vector in vectors.items()}
