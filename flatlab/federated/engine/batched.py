"""All participants of a round at once, as one stack of parameters: fast on a CPU where the model is small.

The clients' vectors are rows of (C, P); `torch.func.vmap` turns the network into one that runs C models on C batches.
Clients with fewer or smaller batches are padded with samples of weight zero and rest, at learning rate zero, when they
are done. A stack draws the same samples as the sequential engine and agrees with it to rounding; only models that draw
random numbers themselves (dropout) see other draws.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn import functional as F

from analysis.calls import call
from flatlab.data import Split, normalise
from flatlab.errors import UsageError, first_line
from flatlab.federated.augment import augment
from flatlab.federated.engine.base import (
    Engine,
    Evaluation,
    Means,
    RoundInputs,
    RoundOutputs,
    is_of_memory,
    no_room_for_a_step,
    refuse_own_draws,
)
from flatlab.federated.engine.round_plan import RoundPlan, plan_round
from flatlab.federated.engine.sequential import add_up, chunk_starts, score_chunk
from flatlab.federated.local_step import local_step_
from flatlab.federated.man import tap_penalised
from flatlab.federated.own_calls import clients_named, require_kept
from flatlab.federated.precision import arithmetic, autocast
from flatlab.federated.streams import seeded
from flatlab.federated.world import World


def open_engine(world: World, means: Means) -> Engine:
    """All clients of a round at once on the device."""
    return BatchedEngine(world, means.device)


class BatchedEngine:
    """Runs the round's clients as one stack on `device`."""

    def __init__(self, world: World, device: torch.device) -> None:
        self.world, self.device = world, device
        refuse_own_draws(world)
        self.together: int | None = None  # clients whose gradients are taken at once: all, unless memory is short
        for found in world.taps.penalised:
            if found.axis is None:
                raise UsageError(
                    f"The samples of {found.name}, which MAN penalises, have no axis of their own, and a stack of "
                    "clients weighs samples; use --engine process, which needs no weights."
                )
        self.model = world.new_model()
        self.model.to(device)  # a model's own method may return nothing
        self.train, self.test = _move(world.data.train, device), _move(world.data.test, device)

    def run(self, inputs: RoundInputs) -> RoundOutputs:
        """Train the participants of one round."""
        config, given = self.world.config, {"w": inputs.w, "own": inputs.own, "server": inputs.server}
        with seeded(config.seed, "model", inputs.t), clients_named(config, inputs.t, given):
            return self._run(inputs)

    def _run(self, inputs: RoundInputs) -> RoundOutputs:
        world, config, rules = self.world, self.world.config, self.world.config.rules
        own, server = self._move(inputs.own), self._move(inputs.server)
        w = inputs.w.to(self.device)
        client = world.client(inputs.t, inputs.ids, w, own, server)
        client = replace(client, wt=client.wt.to(self.device))
        terms = rules.terms(client)
        theta = w.repeat(len(inputs.ids), 1)
        plan = plan_round(world, inputs.t, inputs.ids).to(self.device)
        total = torch.zeros(len(inputs.ids), dtype=torch.float64, device=self.device)
        samples = torch.zeros_like(total)
        self.model.train()
        with arithmetic(config.precision, self.device):
            for step in range(plan.steps):
                x, y, weight = self._take(plan, step)
                taken = (weight > 0).sum(1)
                training = (taken > 0).to(world.dtype).unsqueeze(1)  # 0 for clients that are done
                gradient = partial(self._gradient, x, y, weight)
                eta = client.eta * training
                loss, client = local_step_(theta, gradient, client, terms, rules, eta, config, step)
                total += loss * taken
                samples += taken
        kept = rules.keep(client, theta - w)
        require_kept(config, inputs.t, kept, own)
        after = {name: rows.expand_as(theta) for name, rows in kept.items()}  # (P,): of all
        return RoundOutputs(
            theta=theta,
            after=after,
            losses=(total / samples).tolist(),
            images=int(samples.sum()),
        )

    def evaluate(self, models: Sequence[Tensor]) -> list[Evaluation]:
        """Evaluate each flat vector (P,) on the test set."""
        test, n = self.test, len(self.test)
        world = replace(self.world, data=replace(self.world.data, test=test))
        return [
            add_up([score_chunk(world, self.model, vector, start).tolist() for start in chunk_starts(test)], n)
            for vector in (model.to(self.device) for model in models)
        ]

    def __enter__(self) -> "BatchedEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def _gradient(self, x: Tensor, y: Tensor, weight: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g) of C clients at `at` (C, P): weighted cross-entropy (C,), and the gradient (C, P) of f + zeta/2 R."""
        one = grad_and_value(self._objective, has_aux=True)
        while True:
            try:
                stacked = vmap(one, randomness="different", chunk_size=self.together)
                gradients, (_, loss) = stacked(at, x, y, weight)
            except Exception as error:  # whatever a model meets in a stack that it does not meet by itself
                if not isinstance(error, RuntimeError) or not is_of_memory(error):
                    raise UsageError(
                        f"The model {self.world.config.model} cannot run as a stack of clients ({first_line(error)}); "
                        "use --engine process, which trains each by itself."
                    ) from error
                self._cut(len(at), error)
                continue
            return loss, gradients

    def _cut(self, clients: int, error: RuntimeError) -> None:
        """Take the gradients of half as many clients at once from now on."""
        at_once = min(self.together or clients, clients)
        if at_once == 1:
            raise no_room_for_a_step(self.world.config.model, first_line(error)) from error
        self.together = math.ceil(at_once / 2)

    def _objective(self, theta: Tensor, x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(f + zeta/2 R, f) of one client, on B samples of the given weights."""
        config, taps = self.world.config, self.world.taps
        passed_on: list[Tensor] = []
        activations: list[Tensor] = []

        def tap(activation: Tensor) -> Tensor:
            passed_on.append(activation)
            activations.append(activation.clone() if taps.copies else activation)
            return activation

        parameters = self.world.layout.views(theta)
        tapped = tap_penalised(self.model, config.man_layers, taps.ignored, tap) if config.man else nullcontext()
        with tapped, autocast(config.precision, x.device):
            outputs = call(self.model, parameters, (x,))
        logits = outputs.to(theta.dtype)
        loss = weight @ F.cross_entropy(logits, y, reduction="none")
        if not config.man:
            return loss, loss
        axes = taps.axes or (0,) * len(activations)
        hidden = [
            a.to(theta.dtype).movedim(axis, 0)
            for p, a, axis in zip(passed_on, activations, axes, strict=True)
            if p is not outputs and axis is not None
        ]
        penalty = config.zeta * sum(weight @ a.reshape(len(a), -1).square().mean(1) for a in hidden)
        if config.zeta_logits:
            penalty = penalty + config.zeta_logits * (weight @ logits.square().mean(1))
        return loss + penalty / 2, loss

    def _take(self, plan: RoundPlan, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images (C, B, c, h, w), normalised and augmented, labels and weights (C, B) of a step.

        Weights are 1/b_i on the b_i samples of client i, 0 on padding, and all 0 where the client is done.
        """
        sizes = torch.tensor([own[step] if step < len(own) else 0 for own in plan.lengths])[:, None]
        width = int(sizes.max())
        weight = ((torch.arange(width) < sizes) / sizes.clamp(min=1).to(self.world.dtype)).to(self.device)
        position, draws = plan.part(slice(None), slice(step, step + 1), width)
        x = normalise(self.train.images[position], self.world.data.mean, self.world.data.std, dtype=self.world.dtype)
        x = augment(x, draws) if draws else x
        return x.view(*weight.shape, *x.shape[1:]), self.train.labels[position].view(weight.shape), weight

    def _move(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: vector.to(self.device) for name, vector in vectors.items()}


def _move(split: Split, device: torch.device) -> Split:
    return Split(split.images.to(device), split.labels.to(device))
