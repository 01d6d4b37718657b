"""Participants side by side on a device, each on a stream of its own, its local step one CUDA graph: for GPUs.

A step of a small network is some hundred kernels that take less time to run than to launch. Captured once, all are
launched by one call, and the streams fill the device. What is computed is what the sequential engine computes, for any
model, in another order of rounding; only models that draw random numbers (dropout) see other draws. A model that cannot
be captured, since it asks the device for a value or draws random numbers, runs launch by launch, and so does every
model on a CPU. What a model decides by a counter of its own in Python is decided once, when it is captured.
"""

import gc
import random
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatlab.errors import UsageError, first_line
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
from flatlab.federated.engine.slots import Slots, new_model
from flatlab.federated.own_calls import clients_named, require_kept
from flatlab.federated.participants import sample_clients
from flatlab.federated.precision import arithmetic
from flatlab.federated.streams import seeded
from flatlab.federated.world import World
from flatlab.tell import Tell, silent

MOST_SLOTS = 32
"""Participants that train at once at most: a GPU is full before, and torch has no more streams to give."""

MOST_UNUSED = 512
"""Graphs that are kept though this round does not need them: clients' last batches may be of any size.

Those of a slot share their memory, and making one takes as long as three steps launched by hand.
"""


@dataclass(frozen=True)
class CapturedStep:
    """A local step of one slot on so many samples."""

    graph: torch.cuda.CUDAGraph
    read: list[Any]  # what the slot's model has stored, as a mask for so many samples: the graph may read it


def open_engine(world: World, means: Means) -> Engine:
    """All participants at once, as far as the device holds them."""
    return StreamsEngine(world, means.device, min(means.slots, MOST_SLOTS), means.tell)


class StreamsEngine:
    """Trains at most `slots` participants at once on `device`."""

    def __init__(self, world: World, device: torch.device, slots: int, tell: Tell = silent) -> None:
        self.world, self.device, self.tell = world, device, tell
        refuse_own_draws(world)
        try:
            self.slots = Slots(world, device, slots)
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"The device has no memory for the training set and {slots} clients ({first_line(error)}); use "
                "--device cpu, or --engine batched, which keeps the images as they are."
            ) from error
        self.usable = slots
        self.judge = new_model(world, device)  # no slot's, whose captured steps may read what it has stored
        test = replace(
            world.data.test, images=world.data.test.images.to(device), labels=world.data.test.labels.to(device)
        )
        self.test_world = replace(world, data=replace(world.data, test=test))
        self.captures = device.type == "cuda"
        self.streams = [torch.cuda.Stream(device) for _ in range(slots)] if self.captures else []
        self.steps: dict[tuple[int, int], CapturedStep] = {}  # by slot and number of samples
        # The next round, by number and participants, drawn while the device was busy with this one.
        self.planned: tuple[tuple[int, list[int]], RoundPlan] | None = None

    def run(self, inputs: RoundInputs) -> RoundOutputs:
        """Train the participants of one round."""
        given = {"w": inputs.w, "own": inputs.own, "server": inputs.server}
        with clients_named(self.world.config, inputs.t, given):
            return self._run(inputs)

    def _run(self, inputs: RoundInputs) -> RoundOutputs:
        plan = self._plan(inputs.t, inputs.ids).to(self.device)
        done, waves, seed = 0, [], self.world.config.seed
        # What a step draws before it is captured is not the caller's either.
        with arithmetic(self.world.config.precision, self.device), seeded(seed, "capture"):
            while done < len(inputs.ids):
                wave = slice(done, min(done + self.usable, len(inputs.ids)))
                if self._prepare(inputs, plan, wave):
                    given = {"w": self.slots.w, "server": self.slots.server}
                    with seeded(seed, "model", inputs.t, done), clients_named(self.world.config, inputs.t, given):
                        waves.append(self._train(inputs, plan, wave))
                    done = wave.stop
        self._plan_ahead(inputs.t + 1)
        thetas, afters, losses = zip(*waves, strict=True)
        samples = [sum(own) for own in plan.lengths]
        return RoundOutputs(
            theta=torch.cat(thetas),
            after={name: torch.cat([after[name] for after in afters]) for name in afters[0]},
            losses=[total / n for total, n in zip(torch.cat(losses).tolist(), samples, strict=True)],
            images=sum(samples),
        )

    def evaluate(self, models: Sequence[Tensor]) -> list[Evaluation]:
        """Evaluate each flat vector (P,) on the test set."""
        world, model = self.test_world, self.judge
        starts = chunk_starts(world.data.test)
        here = [vector.to(self.device) for vector in models]
        sums = torch.stack([torch.stack([score_chunk(world, model, w, start) for start in starts]) for w in here])
        model.train()
        return [add_up(chunks, len(world.data.test)) for chunks in sums.tolist()]

    def __enter__(self) -> "StreamsEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.steps.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # others may use the same card

    def _prepare(self, inputs: RoundInputs, plan: RoundPlan, wave: slice) -> bool:
        """Load the wave, its steps captured; False where the wave must be smaller, or is trained uncaptured."""
        if self.slots.load(inputs, wave):
            self.steps.clear()
        if not self.captures:
            return True
        needed = {(i, b) for i, own in enumerate(plan.lengths[wave]) for b in own}
        # The largest first: the memory of a slot's larger step has room for its smaller ones.
        missing = sorted(needed - self.steps.keys(), key=lambda step: (step[0], -step[1]))
        if not missing:
            return True
        for slot, length in [key for key in self.steps if key not in needed][:-MOST_UNUSED]:
            del self.steps[slot, length]
        self.slots.fill(plan, wave, slice(0, min(self.slots.ahead, plan.steps)))
        for slot, length in missing:
            if not self._capture(slot, length, needed):
                return False
        self.slots.load(inputs, wave)  # the steps before a capture were real ones
        return True

    def _capture(self, slot: int, length: int, needed: Collection[tuple[int, int]]) -> bool:
        """Make a step's graph; False where there is no memory for it, or none of the model's can be made."""
        try:
            self.steps[slot, length] = self._captured(slot, length)
        except RuntimeError as error:
            said, short = first_line(_cause(error)), is_of_memory(error) or is_of_memory(_cause(error))
        else:
            return True
        # Here, since an error holds what the step that it ended had in memory.
        if short:
            self._make_room(slot, needed, said)
            return False
        self.tell(
            f"A local step of {self.world.config.model} cannot be captured as a CUDA graph ({said}): its kernels are "
            "launched one by one, which is slower."
        )
        self.captures = False
        self.steps.clear()
        return False

    def _captured(self, slot: int, length: int) -> CapturedStep:
        main, side = torch.cuda.current_stream(), self.streams[slot]
        graph = torch.cuda.CUDAGraph()
        pool = next((step.graph.pool() for (s, _), step in self.steps.items() if s == slot), None)  # never at once
        try:
            side.wait_stream(main)
            with torch.cuda.stream(side):
                before = _generators()
                self._warm_up(slot, length)
                with _waits_refused():  # a capture that meets one would break, and leave the allocator broken
                    self._warm_up(slot, length)
            if _generators() != before:
                raise RuntimeError("it draws random numbers, which every step must draw anew")
            with torch.cuda.graph(graph, pool=pool, stream=side):
                self.slots.take_step(slot, length)
        finally:  # a capture that breaks leaves its own stream the current one
            torch.cuda.set_stream(main)
            main.wait_stream(side)
        stored = [x for module in self.slots.models[slot].modules() for x in vars(module).values()]
        return CapturedStep(graph, [copy(x) if isinstance(x, dict | list) else x for x in stored])

    def _warm_up(self, slot: int, length: int) -> None:
        """A step in which libraries choose their kernels."""
        self.slots.row[slot].zero_()
        self.slots.step[slot].zero_()
        self.slots.take_step(slot, length)

    def _make_room(self, slot: int, needed: Collection[tuple[int, int]], said: str) -> None:
        """Drop the steps that are not `needed`; without any, use fewer slots, so that something is left for all else.

        Those are two fewer than tried to have steps. Raises `UsageError` where that was one.
        """
        if self.steps.keys() <= set(needed):
            tried = {slot, *(held for held, _ in self.steps)}
            if len(tried) == 1:
                raise no_room_for_a_step(self.world.config.model, said)
            self.usable = max(1, len(tried) - 2)
        self.steps = {key: step for key, step in self.steps.items() if key in needed and key[0] < self.usable}
        gc.collect()
        torch.cuda.empty_cache()

    def _train(self, inputs: RoundInputs, plan: RoundPlan, wave: slice) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(theta, own vectors, sums of losses) of the wave after its steps."""
        slots, lengths, n = self.slots, plan.lengths[wave], wave.stop - wave.start
        for start in range(0, max(map(len, lengths)), slots.ahead):
            steps = slice(start, min(start + slots.ahead, plan.steps))
            slots.fill(plan, wave, steps)
            taken = [own[steps] for own in lengths]
            self._take_steps([(i, b) for row in zip_longest(*taken) for i, b in enumerate(row) if b is not None], n)
        client = slots.participants(inputs, wave)
        theta = slots.theta[:n].clone()
        after = self.world.config.rules.keep(client, theta - slots.w)
        require_kept(self.world.config, inputs.t, after, client.own)
        return theta, {name: rows.expand_as(theta).clone() for name, rows in after.items()}, slots.loss[:n].clone()

    def _take_steps(self, steps: list[tuple[int, int]], n: int) -> None:
        """Take steps, each (slot, samples), those of different slots at once."""
        if not self.captures:
            for slot, length in steps:
                self.slots.take_step(slot, length)
            return
        main, streams = torch.cuda.current_stream(), self.streams[:n]
        for side in streams:
            side.wait_stream(main)
        for slot, length in steps:
            with torch.cuda.stream(streams[slot]):
                self.steps[slot, length].graph.replay()
        for side in streams:
            main.wait_stream(side)

    def _plan(self, t: int, ids: Sequence[int]) -> RoundPlan:
        if self.planned and self.planned[0] == (t, list(ids)):
            return self.planned[1]
        return plan_round(self.world, t, ids)

    def _plan_ahead(self, t: int) -> None:
        """Draw round t, where there is one."""
        self.planned = None
        if t < self.world.config.rounds:
            ids = sample_clients(self.world.config, t)
            self.planned = (t, ids), plan_round(self.world, t, ids)


def _cause(error: RuntimeError) -> Exception:
    """What broke a capture, rather than that it is broken."""
    return error.__context__ if isinstance(error.__context__, Exception) else error


@contextmanager
def _waits_refused() -> Iterator[None]:
    """Within the block whatever waits for the device raises `RuntimeError`."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # that it may change in torch
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _generators() -> tuple[object, ...]:
    """Where every generator stands that a model may draw from."""
    here, there = (state.numpy().tobytes() for state in (torch.get_rng_state(), torch.cuda.get_rng_state()))
    numpy = np.random.get_state(legacy=False)["state"]
    return here, there, random.getstate(), numpy["key"].tobytes(), numpy["pos"]
