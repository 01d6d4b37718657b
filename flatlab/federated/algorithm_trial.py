"""A user's own algorithm is tried once before round 1, on a few numbers, so that no run ends in what could be known.

What is refused: a function that fails, that returns something else than `Algorithm` says, or that gives a client in a
stack of clients, as GPUs train them, another result than the client by itself.
"""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatlab.errors import UsageError, first_line, shown
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.algorithms.base import Client, Round, Terms
from flatlab.federated.config import RunConfig
from flatlab.federated.local_step import local_step_
from flatlab.federated.own_algorithm import find_algorithm
from flatlab.federated.server_average import KEPT
from flatlab.functions import import_named
from flatlab.runs.contents import NAMES

_CLIENTS, _SIZE, _STEPS, _ROUNDS = 3, 5, 2, 3


def try_algorithm(config: RunConfig) -> None:
    """Run a few rounds of three clients with five parameters each; raises `UsageError` as the module says."""
    if config.algorithm not in ALGORITHMS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _Trial(config).run()


class _Trial:
    """Rounds of a quadratic loss in float64, each client's step by itself and as a row of a stack."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.name = config, config.algorithm
        self.rules, self.hyper = find_algorithm(config.algorithm), config.hyperparameters  # without server_average.py
        self.target = torch.randn(_CLIENTS, _SIZE, dtype=torch.float64)
        self.samples = torch.tensor([[4.0], [9.0], [2.0]], dtype=torch.float64)
        self.wt = self.samples * _CLIENTS / self.samples.sum()

    def run(self) -> None:
        self.refuse_names_of_the_average()
        rules, w = self.rules, torch.randn(_SIZE, dtype=torch.float64)
        given = self.call("initial", w, self.hyper)
        self.require("initial", isinstance(given, Mapping), "no dictionary of vectors")
        self.require("initial", set(given) <= {*rules.own, *rules.server}, "vectors that neither own nor server name")
        zeros = torch.zeros_like(w)
        own = {name: given.get(name, zeros).expand(_CLIENTS, _SIZE).clone() for name in rules.own}
        server = {name: given.get(name, zeros) for name in rules.server}
        names: set[str] = set()
        for t in range(_ROUNDS):
            start = self.call("start", w, server, self.hyper, t)
            self.require("start", _is(start, w), f"something else than the vector {tuple(w.shape)} it starts from")
            theta, after = self.clients(t, start, own, server)
            combined = self.call("combine", self.round(t, w, theta, own, after, server))
            self.require("combine", isinstance(combined, tuple) and len(combined) == 2, "no pair (w, vectors)")
            self.require("combine", _is(combined[0], w), f"a w that is no tensor {tuple(w.shape)} of its dtype")
            self.require_vectors("combine", combined[1], server)
            w, own, server = combined[0], after, dict(combined[1])
            names = self.models(w, server, names)

    def models(self, w: Tensor, server: Mapping[str, Tensor], before: set[str]) -> set[str]:
        """The names of the further models; refused unless they are as before and none is the run's own."""
        models = self.call("models", w, server)
        self.require_vectors("models", models, dict.fromkeys(models, w) if isinstance(models, Mapping) else {})
        for name in models:
            named = isinstance(name, str) and name.isidentifier()
            self.require("models", named, f"a model called {shown(name)}: a name of letters, digits and _ is needed")
            self.require("models", name not in NAMES, f"a model called {name!r}, as the run calls one of its own")
        self.require("models", not before or before == set(models), "models of other names in every round")
        return set(models)

    def refuse_names_of_the_average(self) -> None:
        """`server_average.py` keeps vectors of its own beside the algorithm's, and would overwrite these."""
        for name in KEPT if self.config.swa_from is not None else ():
            if name in self.rules.server:
                raise UsageError(
                    f"The algorithm {self.name} calls a vector of the server {name!r}, as the average that swa_start "
                    "asks for is called: give it another name, or leave swa_start out."
                )

    def clients(
        self, t: int, start: Tensor, own: Mapping[str, Tensor], server: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """theta_K (C, P) and the clients' vectors after the round, one by one; refused where a stack differs."""
        eta = self.config.learning_rate(t)
        alone = [
            self.train(t, start, self.wt[i], {name: v[i] for name, v in own.items()}, server, self.target[i], eta)
            for i in range(_CLIENTS)
        ]
        rates = torch.full((_CLIENTS, 1), eta, dtype=torch.float64)
        together = self.train(t, start.expand(_CLIENTS, _SIZE), self.wt, own, server, self.target, rates)
        theta = torch.stack([one for one, _ in alone])
        after = {name: torch.stack([vectors[name] for _, vectors in alone]) for name in own}
        for found, wanted in ((together[0], theta), *((together[1][name], after[name]) for name in own)):
            if not torch.allclose(found, wanted, rtol=1e-9, atol=1e-12, equal_nan=True):
                raise UsageError(
                    f"The algorithm {self.name} gives clients in a stack (C, P) another result than one by one (P,): "
                    "its sums and norms must go along the last dimension and keep it, as norm in "
                    "flatlab.federated.algorithms.base."
                )
        return theta, after

    def train(
        self,
        t: int,
        start: Tensor,
        wt: Tensor,
        own: Mapping[str, Tensor],
        server: Mapping[str, Tensor],
        target: Tensor,
        eta: Tensor | float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A client's round, or that of a stack of them: theta_K and its vectors after it."""
        rules, theta = self.rules, start.clone()
        client: Client[Any] = Client(
            start, wt, own, server, self.hyper, _STEPS, self.config.lr, torch.arange(_SIZE) < _SIZE - 1, t, eta
        )
        terms = self.call("terms", client)
        self.require("terms", isinstance(terms, Terms), "no Terms")
        gradient = partial(_gradient, target)
        for k in range(_STEPS):
            self.pieces(client, theta, theta - target, k)
            with self.named("terms, or what its Terms hold,"):
                _, client = local_step_(theta, gradient, client, terms, rules, eta, self.config, k)
        after: dict[str, Tensor] = self.call("keep", client, theta - start)
        self.require_vectors("keep", after, own)
        return theta, after

    def pieces(self, client: Client[Any], theta: Tensor, g: Tensor, k: int) -> None:
        """The functions of a step, each by itself, so that the one at fault is named."""
        rules = self.rules
        if rules.lookahead is not None:
            self.require_moved("lookahead", self.call("lookahead", client, theta, k), theta)
        if rules.ascent is not None:
            ascent = self.call("ascent", client, theta, g)
            self.require_moved("ascent", ascent, theta)
            if rules.during is not None:
                changed = self.call("during", client, ascent)
                known = isinstance(changed, Mapping) and set(changed) <= set(client.own)
                self.require_vectors("during", changed, dict.fromkeys(changed if known else client.own, theta))
        if rules.rate is not None:
            with self.named("rate"):
                float(rules.rate(client, k))

    def round(
        self,
        t: int,
        w: Tensor,
        theta: Tensor,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        server: Mapping[str, Tensor],
    ) -> Round[Any]:
        eta = self.config.learning_rate(t)
        return Round(w, theta, self.samples, self.wt, before, after, server, self.hyper, _CLIENTS + 1, t, eta, _STEPS)

    def call(self, function: str, *arguments: Any) -> Any:
        """What that function of the algorithm returns."""
        with self.named(function):
            return getattr(self.rules, function)(*arguments)

    def require_moved(self, function: str, found: object, theta: Tensor) -> None:
        """Refuse what cannot be added to theta, entry by entry."""
        self.require(function, _is(found, theta), f"something else than a tensor {tuple(theta.shape)}")

    def require_vectors(self, function: str, found: object, like: Mapping[str, Tensor]) -> None:
        """Refuse what is no dictionary of exactly the tensors `like`, by name and shape."""
        names = ", ".join(like) or "none"
        right = isinstance(found, Mapping) and set(found) == set(like) and all(_is(found[n], like[n]) for n in like)
        self.require(function, right, f"something else than a dictionary of its vectors ({names}), each of its shape")

    def require(self, function: str, right: bool, returned: str) -> None:
        if not right:
            raise UsageError(f"The algorithm {self.name} cannot be used: its {function} returns {returned}.")

    @contextmanager
    def named(self, function: str) -> Iterator[None]:
        """Turn whatever a user's function raises into one sentence that says where."""
        try:
            yield
        except UsageError:
            raise
        except Exception as error:
            line = _line_in(self.name, error)
            raise UsageError(
                f"The algorithm {self.name} cannot be used: its {function} raised {first_line(error)}{line}."
            ) from error


def _gradient(target: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    return (theta - target).square().sum(-1) / 2, theta - target


def _is(found: object, like: Tensor) -> bool:
    return isinstance(found, Tensor) and found.shape == like.shape and found.dtype == like.dtype


def _line_in(name: str, error: Exception) -> str:
    """Where in the user's file the error arose, for a sentence."""
    file = import_named(name.partition(":")[0] + ":__file__", "algorithm")
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if lines else ""
