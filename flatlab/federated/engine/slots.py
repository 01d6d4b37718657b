"""Where the participants of a round train side by side: buffers that stay where they are, and a local step on them.

What never moves can be captured: on a GPU a slot's step, from its samples to its new model, is one CUDA graph. Whatever
changes from step to step, a learning rate or a counter, is therefore a number on the device, with no dimensions, so
that float32 vectors stay float32 beside it.
"""

from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flatlab.data import Split, normalise
from flatlab.federated.algorithms.base import Client, Terms
from flatlab.federated.augment import crop, pad
from flatlab.federated.engine.base import RoundInputs
from flatlab.federated.engine.round_plan import RoundPlan, most_steps
from flatlab.federated.engine.sequential import loss_gradient
from flatlab.federated.local_step import local_step_
from flatlab.federated.own_calls import clients_named
from flatlab.federated.world import World

WAITING = 512 << 20
"""Bytes of samples that lie ready for the next steps of all slots."""


class Slots:
    """`count` places on `device`, each for one participant at a time."""

    def __init__(self, world: World, device: torch.device, count: int) -> None:
        self.world, self.device = world, device
        rules, P = world.config.rules, world.layout.size
        zeros = partial(torch.zeros, dtype=world.dtype, device=device)
        # One each, since a captured step has addresses of its own model's; built and not copied, since what a model
        # keeps beside its parameters (a hook, a function that closes over a layer) would go on reading the original's.
        self.models = [new_model(world, device) for _ in range(count)]
        _, server = world.initial(torch.zeros(P, dtype=world.dtype))
        self.w = zeros(P)
        self.server = {name: zeros(first.shape) for name, first in server.items()}
        self.own = {name: zeros(count, P) for name in rules.own}
        self.theta, self.wt = zeros(count, P), zeros(count, 1)
        self.t, self.eta = zeros((), dtype=torch.float64), zeros((), dtype=torch.float64)
        self.rates = zeros(most_steps(world), dtype=torch.float64)
        self.step, self.row = (torch.zeros(count, dtype=torch.int64, device=device) for _ in range(2))
        self.loss = zeros(count, dtype=torch.float64)  # sum over the steps, each weighed by its samples
        self.terms: dict[str, Tensor | float | None] = {}
        self.samples, self.labels = _stored(world, world.data.train, device)
        B = min(world.config.batch_size, max(len(part) for part in world.parts))
        shape = world.data.train.images.shape[1:] if self.samples.ndim != 4 else _pixels(world)
        entry = self.samples.dtype.itemsize * shape.numel()
        self.ahead = max(1, min(len(self.rates), WAITING // (count * B * entry)))
        self.x = torch.zeros(count, self.ahead, B, *shape, dtype=self.samples.dtype, device=device)
        self.y = torch.zeros(count, self.ahead, B, dtype=torch.int64, device=device)
        self.is_weight, self.K = world.layout.is_weight().to(device), world.steps

    def load(self, inputs: RoundInputs, clients: slice) -> bool:
        """Put the participants `clients` into the first slots, at the beginning of their round.

        Returns whether the steps taken so far were others: where a term is a number, it is part of a step.
        """
        rules, config = self.world.config.rules, self.world.config
        n = len(inputs.ids[clients])
        self.w.copy_(inputs.w)
        for name, vector in inputs.server.items():
            self.server[name].copy_(vector)
        for name, rows in inputs.own.items():
            self.own[name][:n].copy_(rows[clients])
        self.theta[:n].copy_(self.w.expand(n, -1))
        self.wt[:n].copy_(self.world.wt[inputs.ids[clients]])
        self.t.fill_(inputs.t)
        self.eta.fill_(config.learning_rate(inputs.t))
        client = self.participants(inputs, clients)
        rate = rules.rate
        with clients_named(config, inputs.t, {"w": self.w, "own": client.own, "server": self.server}):
            rates = [client.eta * (1.0 if rate is None else rate(client, k)) for k in range(len(self.rates))]
            terms = rules.terms(client)
        self.rates.copy_(torch.tensor(rates, dtype=torch.float64))
        self.loss.zero_()
        self.step.zero_()
        return self._load_terms(terms, n)

    def _load_terms(self, terms: Terms, n: int) -> bool:
        before = {name: value for name, value in self.terms.items() if not isinstance(value, Tensor)}
        for field in fields(Terms):
            value = getattr(terms, field.name)
            if isinstance(value, Tensor):
                value = value.reshape(1) if value.dim() == 0 else value
                if not isinstance(self.terms.get(field.name), Tensor):
                    shape = self.theta.shape[0], value.shape[-1]
                    self.terms[field.name] = torch.zeros(shape, dtype=value.dtype, device=self.device)
                self.terms[field.name][:n].copy_(value.expand(n, -1))  # type: ignore[index]
            else:
                self.terms[field.name] = value
        return before != {name: value for name, value in self.terms.items() if not isinstance(value, Tensor)}

    def participants(self, inputs: RoundInputs, clients: slice) -> Client[Any]:
        """Those in the first slots, as one stack."""
        n, t = len(inputs.ids[clients]), inputs.t
        return self._client(slice(n), t, self.world.config.learning_rate(t))

    def _client(self, place: int | slice, t: int | Tensor, eta: float | Tensor) -> Client[Any]:
        config = self.world.config
        return Client(
            w=self.w,
            wt=self.wt[place],
            own={name: rows[place] for name, rows in self.own.items()},
            server=self.server,
            hyper=config.hyperparameters,
            K=self.K,
            eta_0=config.lr,
            is_weight=self.is_weight,
            t=t,
            eta=eta,
        )

    def fill(self, plan: RoundPlan, clients: slice, steps: slice) -> None:
        """Lay the samples of these steps ready, and begin at the first of them."""
        position, draws = plan.part(clients, steps)
        taken = crop(self.samples, position, draws).permute(0, 2, 3, 1) if draws else self.samples[position]
        n, s, b = plan.position[clients, steps].shape
        self.x[:n, :s, :b].copy_(taken.view(n, s, b, *taken.shape[1:]))
        self.y[:n, :s, :b].copy_(self.labels[position].view(n, s, b))
        self.row.zero_()

    def take_step(self, slot: int, length: int) -> None:
        """The next local step in `slot`, on the `length` samples that lie ready for it."""
        world, config = self.world, self.world.config
        here = self.row[slot : slot + 1]
        x, y = (ready[slot].index_select(0, here)[0, :length] for ready in (self.x, self.y))
        if x.ndim == 4:
            x = x.permute(0, 3, 1, 2)  # channels last in memory
        client = self._client(slot, self.t, self.eta)
        terms = Terms(**{n: v[slot] if isinstance(v, Tensor) else v for n, v in self.terms.items()})  # type: ignore[arg-type]
        eta = self.rates.index_select(0, self.step[slot : slot + 1])[0]
        gradient = partial(loss_gradient, world, self.models[slot], x, y)
        loss, after = local_step_(self.theta[slot], gradient, client, terms, config.rules, eta, config, self.step[slot])
        changed = {name: x.clone() for name, x in after.own.items() if x is not client.own[name]}  # may be another's
        for name, vector in changed.items():
            client.own[name].copy_(vector)
        self.loss[slot].add_(loss, alpha=length)
        self.step[slot].add_(1)
        self.row[slot].add_(1)


def new_model(world: World, device: torch.device) -> nn.Module:
    """The world's model on `device`, to be trained."""
    model = world.new_model()
    model.to(device)  # a model's own methods may return nothing
    model.train()
    return model


def _stored(world: World, split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """The training set on the device as steps take from it: normalised, images channels last, padded for crops."""
    inputs = normalise(split.images.to(device), world.data.mean, world.data.std, dtype=world.dtype)
    if inputs.ndim == 4:
        inputs = pad(inputs) if world.data.augment else inputs.permute(0, 2, 3, 1).contiguous()
    return inputs, split.labels.to(device)


def _pixels(world: World) -> torch.Size:
    channels, height, width = world.data.train.images.shape[1:]
    return torch.Size((height, width, channels))
