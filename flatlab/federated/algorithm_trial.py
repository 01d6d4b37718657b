"""A user's own algorithm is tried once before round 1, on a few numbers, so that no run ends in what could be known.

What is refused: a function that fails, that returns something else than `Algorithm` says, that changes what it is
given, that returns something else when it is asked again, or that gives a client in a stack of clients, as GPUs train
them, another result than the client by itself; and a model reported as the participants' average that is another.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flatlab.errors import UsageError, shown
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.algorithms.base import Client, Round, Terms
from flatlab.federated.config import RunConfig
from flatlab.federated.local_step import local_step_
from flatlab.federated.own_algorithm import find_algorithm
from flatlab.federated.own_calls import Calls
from flatlab.federated.server_average import KEPT
from flatlab.federated.streams import begin, seeded
from flatlab.federated.world import DTYPES
from flatlab.runs.contents import NAMES

_CLIENTS, _SIZE, _STEPS, _ROUNDS = 3, 5, 2, 3

_OF_CLIENTS = ("terms", "ascent", "during", "lookahead", "rate", "keep")

_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-9}
"""By which two averages may differ, relative to the numbers averaged."""


class _StackDiffersError(UsageError):
    """A stack of clients has another result than the clients by themselves."""


def try_algorithm(config: RunConfig) -> tuple[str, list[float]]:
    """Run a few rounds of three clients with five parameters each; raises `UsageError` as the module says.

    Returns the name of a function of the client's that draws random numbers, if any does: it is not tried in stacks;
    and what the rounds came to, w and the vectors of clients and server.
    """
    if config.algorithm in ALGORITHMS:
        return "", []
    dtype = DTYPES[config.dtype]
    with seeded(config.seed, "trial"):
        trial = _Trial(config, dtype)
        trial.run()
        if dtype != torch.float64:
            try:
                _Trial(config, torch.float64).run()
            except _StackDiffersError:
                raise
            except UsageError:  # a constant of the run's dtype, which float64 does not go with
                pass
    return trial.draws, trial.numbers


class _Trial(Calls):
    """Rounds of a quadratic loss, each client's step by itself and as a row of a stack.

    Types are looked at in the run's dtype; the two ways are compared in float64, where rounding hides no difference.
    """

    def __init__(self, config: RunConfig, dtype: torch.dtype) -> None:
        begin(0)
        rules = find_algorithm(config.algorithm)  # without server_average.py
        super().__init__(config, rules, typed=DTYPES[config.dtype] == dtype)
        self.name, self.dtype, self.hyper, self.draws = config.algorithm, dtype, config.hyperparameters, ""
        self.numbers: list[float] = []
        self.target = torch.randn(_CLIENTS, _SIZE, dtype=dtype)
        self.samples = torch.tensor([[4.0], [9.0], [2.0]], dtype=dtype)
        self.wt = self.samples * _CLIENTS / self.samples.sum()

    def run(self) -> None:
        self.refuse_names_of_the_average()
        w = torch.randn(_SIZE, dtype=self.dtype)
        first, server = self.initial(w)
        own = {name: vector.expand(_CLIENTS, _SIZE).clone() for name, vector in first.items()}
        names: set[str] = set()
        for t in range(_ROUNDS):
            start = self.call("start", w, server, self.hyper, t)
            self.require_start(start, w)
            theta, after = self.clients(t, start.clone(), own, server)
            combined = self.call("combine", self.round(t, w, theta, own, after, server))
            self.require_combined(combined, w, server)
            self.refuse_another_average(combined[0], theta)
            w, own, server = combined[0].clone(), after, {name: v.clone() for name, v in combined[1].items()}
            names = self.models(w, server, names)
        vectors = {**own, **server, "w": w}
        self.numbers = [float(x) for name in sorted(vectors) for x in vectors[name].flatten()]

    def initial(self, w: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The vectors of one client and of the server before the first round, each with storage of its own."""
        rules, given = self.rules, self.call("initial", w, self.hyper)
        self.require("initial", isinstance(given, Mapping), "no dictionary of vectors")
        self.require("initial", set(given) <= {*rules.own, *rules.server}, "vectors that neither own nor server name")
        for name, vector in given.items():
            like = w if name in rules.own or not isinstance(vector, Tensor) else torch.empty_like(vector, dtype=w.dtype)
            form = f"tensor {tuple(w.shape)}" if name in rules.own else "tensor"
            right = self.is_like(vector, like)
            self.require("initial", right, f"a vector {name} that is no {form} of {self.config.dtype}")
        own, server = (
            {n: given.get(n, torch.zeros_like(w)).clone() for n in names} for names in (rules.own, rules.server)
        )
        return own, server

    def models(self, w: Tensor, server: Mapping[str, Tensor], before: set[str]) -> set[str]:
        """The names of the further models; refused unless they are as before and none is the run's own."""
        models = self.call("models", w, server)
        self.require_models(models, w)
        for name in models:
            named = isinstance(name, str) and name.isidentifier()
            self.require("models", named, f"a model called {shown(name)}: a name of letters, digits and _ is needed")
            self.require("models", name not in NAMES, f"a model called {name!r}, as the run calls one of its own")
        self.require("models", not before or before == set(models), "models of other names in every round")
        return set(models)

    def refuse_another_average(self, w: Tensor, theta: Tensor) -> None:
        """Where a run reports the participants' average, w must be it, or the algorithm say that it differs."""
        if self.config.report != "selected" or self.rules.server_differs:
            return
        weights = self.samples if self.rules.weighted else torch.ones_like(self.samples)
        mean, rounding = (weights * theta).sum(0) / weights.sum(), _ROUNDING[self.dtype] * theta.abs().max()
        if not (w - mean).abs().max() <= rounding:
            raise self.wrong(
                "report = selected is the participants' average, and its combine returns another w: give the Algorithm "
                "server_differs=True (or weighted=False, where every client counts alike)"
            )

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
        alone = [
            self.train(t, start, self.wt[i], {name: v[i] for name, v in own.items()}, server, self.target[i])
            for i in range(_CLIENTS)
        ]
        together = self.train(t, start, self.wt, own, server, self.target)
        theta = torch.stack([one for one, _ in alone])
        after = {name: torch.stack([vectors[name] for _, vectors in alone]) for name in own}
        for found, wanted in ((together[0], theta), *((together[1][name], after[name]) for name in own)):
            same = torch.allclose(found.expand_as(wanted), wanted, rtol=1e-9, atol=1e-12, equal_nan=True)
            if self.dtype == torch.float64 and not self.draws and not same:
                raise _StackDiffersError(
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
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The round of a client, or of a stack of them, as `target` is (P,) or (C, P): theta_K, its vectors after it.

        As in the engines, a stack starts from one (P,), and only its steps' learning rates are (C, 1).
        """
        rules, theta, rate = self.rules, start.expand_as(target).clone(), self.rate(t)
        eta = rate if target.dim() == 1 else torch.full((len(target), 1), rate, dtype=self.dtype)
        client: Client[Any] = Client(
            start, wt, own, server, self.hyper, _STEPS, self.config.lr, torch.arange(_SIZE) < _SIZE - 1, t, rate
        )
        terms = self.call("terms", client)
        self.require("terms", isinstance(terms, Terms), "no Terms")
        gradient = partial(_gradient, target)
        for k in range(_STEPS):
            self.pieces(client, theta, theta - target, k)
            with self.named("terms, or what its Terms hold,"):
                _, client = local_step_(theta, gradient, client, terms, rules, eta, self.config, k)
        after: dict[str, Tensor] = self.call("keep", client, theta - start)
        self.require_rows("keep", after, own)
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
                changed = self.call("during", client, ascent.clone())
                known = isinstance(changed, Mapping) and set(changed) <= set(client.own)
                self.require_rows("during", changed, dict.fromkeys(changed if known else client.own, theta))
        if rules.rate is not None:
            rate = self.call("rate", client, k)
            with self.named("rate"):
                float(rate)

    def round(
        self,
        t: int,
        w: Tensor,
        theta: Tensor,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        server: Mapping[str, Tensor],
    ) -> Round[Any]:
        eta = self.rate(t)
        return Round(w, theta, self.samples, self.wt, before, after, server, self.hyper, _CLIENTS + 1, t, eta, _STEPS)

    def rate(self, t: int) -> float:
        """The learning rate of round t, after the last round that of the last: a cosine would end at 0."""
        return self.config.learning_rate(min(t, self.config.rounds - 1))

    def call(self, function: str, *arguments: Any) -> Any:
        """What that function of the algorithm returns; refused where it returns something else when asked again."""
        before = torch.get_rng_state()
        returned = super().call(function, *arguments)
        if function in _OF_CLIENTS and not torch.equal(torch.get_rng_state(), before):
            self.draws = self.draws or function
        torch.set_rng_state(before)
        if not _same(super().call(function, *arguments), returned):
            raise self.wrong(
                f"its {function} gives two results for the same arguments: keep its state in `server` or `own`, and "
                "draw from torch's generator"
            )
        return returned

    def require_moved(self, function: str, found: object, theta: Tensor) -> None:
        """Refuse what cannot be added to theta, entry by entry."""
        form = f"a tensor {tuple(theta.shape)} of {self.config.dtype}"
        self.require(function, self.is_rows(found, theta), f"something else than {form}")


def _same(a: object, b: object) -> bool:
    """Whether two results are equal, number by number, nan where the other has nan."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    if isinstance(a, Terms) and isinstance(b, Terms):
        return _same(vars(a), vars(b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and (not isinstance(a, bool | int | float | str) or a == b or a != a)


def _gradient(target: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    return (theta - target).square().sum(-1) / 2, theta - target
