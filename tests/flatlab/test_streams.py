"""The engine of streams: what it draws, how it takes turns, and, where there is a GPU, what its graphs compute."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flatlab.errors import UsageError
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.augment import Draws
from flatlab.federated.engine.base import Engine
from flatlab.federated.engine.round_plan import most_steps, plan_round
from flatlab.federated.engine.sequential import SequentialEngine, client_batches
from flatlab.federated.engine.streams import StreamsEngine
from flatlab.federated.local_batches import local_batches
from flatlab.federated.parameters import layout_of
from flatlab.federated.participants import most_participants
from flatlab.federated.rounds import Run, train
from flatlab.federated.streams import stream
from flatlab.federated.world import World

MakeWorld = Callable[..., World]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trained(world: World, folder: Path, engine: Engine, device: str = "cpu") -> Run:
    run = Run(world, folder, device=device)
    run.begin()
    with engine:
        train(run, engine, lambda record: None)
    return run


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 13), min_size=1, max_size=4),
    batch_size=st.integers(1, 6),
    epochs=st.integers(1, 3),
    augment=st.booleans(),
    algorithm=st.sampled_from(["fedavg", "scaffold"]),  # whole epochs, and exactly K steps
)
def test_a_plan_is_what_every_client_draws(
    toy_world: MakeWorld, sizes: list[int], batch_size: int, epochs: int, augment: bool, algorithm: str
) -> None:
    world = toy_world(
        tuple(sizes), batch_size=batch_size, local_epochs=epochs, augment=augment, algorithm=algorithm, hyper={}
    )
    config, ids = world.config, list(range(len(sizes)))
    plan = plan_round(world, 2, ids)
    assert plan.steps == most_steps(world)
    for k in ids:
        steps = world.steps if config.rules.exact_steps else None
        batches = list(
            local_batches(sizes[k], config, stream(config.seed, "client", 2, k), augment=augment, steps=steps)
        )
        assert plan.lengths[k] == [len(batch.index) for batch in batches]
        for s, batch in enumerate(batches):
            b = len(batch.index)
            position, draws = plan.part(slice(k, k + 1), slice(s, s + 1))
            assert position[:b].tolist() == torch.from_numpy(world.parts[k])[batch.index].tolist()
            if augment:
                assert isinstance(draws, Draws)
                assert batch.draws is not None
                for ours, theirs in zip(vars(draws).values(), vars(batch.draws).values(), strict=True):
                    assert torch.equal(ours[:b], theirs)
            else:
                assert draws is None


def test_a_run_cut_off_ends_as_one_that_was_not(toy_world: MakeWorld, tmp_path: Path) -> None:
    world = toy_world(algorithm="feddc", participation=0.7, rounds=4)
    whole = trained(world, tmp_path / "whole", StreamsEngine(world, torch.device("cpu"), slots=2))
    run = Run(world, tmp_path / "cut")
    run.begin()
    with StreamsEngine(world, torch.device("cpu"), slots=2) as engine:
        run.advance(engine)
        run.save()
    again = Run(world, tmp_path / "cut")
    again.resume()
    with StreamsEngine(world, torch.device("cpu"), slots=2) as engine:
        train(again, engine, lambda record: None)
    assert torch.equal(again.server.w, whole.server.w)


class Crowded(StreamsEngine):
    """Counts what a GPU would hold: steps of `room` samples together. They are taken as on a CPU."""

    def __init__(self, world: World, slots: int, room: int) -> None:
        super().__init__(world, torch.device("cpu"), slots)
        self.captures, self.room = True, room

    def _captured(self, slot: int, length: int) -> Any:
        if sum(b for _, b in self.steps) + length > self.room:
            raise torch.OutOfMemoryError("out of memory")

    def _take_steps(self, steps: list[tuple[int, int]], n: int) -> None:
        assert set(steps) <= self.steps.keys()
        for slot, length in steps:
            self.slots.take_step(slot, length)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 13), min_size=1, max_size=6),
    room=st.integers(1, 60),
    participation=st.sampled_from([0.5, 1.0]),
)
def test_a_stack_that_does_not_fit_the_memory_is_cut_into_several(
    toy_world: MakeWorld, sizes: list[int], room: int, participation: float
) -> None:
    """Whatever there is room for: the sequential engine's model, or that there is none for one client's step."""
    world = toy_world(tuple(sizes), algorithm="scaffold", hyper={}, rounds=3, participation=participation)
    fits_one = room >= max(sum({len(batch.index) for batch in client_batches(world, 0, k)}) for k in range(len(sizes)))
    exact, ours, said = Run(world, Path()), Run(world, Path()), ""
    for _ in range(world.config.rounds):
        exact.advance(SequentialEngine(world))
    engine = Crowded(world, most_participants(world.config), room)
    try:
        for _ in range(world.config.rounds):
            ours.advance(engine)
    except UsageError as error:
        said = str(error)
    if said:
        assert not fits_one
        assert "The device has no memory for a local step of mlp" in said
    else:
        torch.testing.assert_close(ours.server.w, exact.server.w, rtol=1e-11, atol=1e-11)


@needs_gpu
@pytest.mark.parametrize("man", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_captured_steps_are_those_of_the_sequential_engine(
    algorithm: str, man: bool, toy_world: MakeWorld, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"algorithm": algorithm, "man": man, "hyper": {}, "augment": True, "rounds": 3}
    world = toy_world((9, 14, 11, 6), (3, 20, 20), model="cifar-cnn", batch_size=5, **fields)
    exact = trained(world, tmp_path / "1", SequentialEngine(world))
    slots = most_participants(world.config)
    ours = trained(world, tmp_path / "2", StreamsEngine(world, torch.device("cuda"), slots), device="cuda")
    torch.testing.assert_close(ours.server.w.cpu(), exact.server.w, rtol=1e-11, atol=1e-11)
    again = Run(world, tmp_path / "2", device="cuda")
    again.resume()
    assert torch.equal(again.server.w, ours.server.w)


class Closed(nn.Module):
    """Reaches its layers by what a copy of the model would share with it: a function of its own, and a hook."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, 5), nn.Linear(5, classes)
        self.scale = nn.Parameter(torch.ones(5))
        self.head: Callable[[Tensor], Tensor] = lambda x: self.last(x.relu())
        self.first.register_forward_hook(lambda module, given, output: output * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x.flatten(1)))


def test_every_slot_trains_a_model_of_its_own(toy_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(self: World) -> nn.Module:
        torch.manual_seed(0)
        return Closed(12, 4).to(self.dtype)

    monkeypatch.setattr(World, "new_model", build)
    world = toy_world(rounds=1, participation=1.0)
    world = replace(world, layout=layout_of(world.new_model()))
    exact, ours = Run(world, Path()), Run(world, Path())
    exact.advance(SequentialEngine(world))
    ours.advance(StreamsEngine(world, torch.device("cpu"), 3))
    torch.testing.assert_close(ours.server.w, exact.server.w, rtol=1e-11, atol=1e-11)


class Asking(nn.Module):
    """Asks the device for a value."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.flatten(1))
        return logits if x.sum().item() < 1e9 else -logits


@needs_gpu
def test_a_model_that_cannot_be_captured_is_trained_launch_by_launch(
    toy_world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = toy_world(rounds=1)
    monkeypatch.setattr(World, "new_model", lambda self: Asking(12, 4).to(self.dtype))
    world = replace(world, layout=layout_of(Asking(12, 4)))
    said: list[str] = []
    engine = StreamsEngine(world, torch.device("cuda"), 2, said.append)
    trained(world, tmp_path / "1", engine, device="cuda")
    assert not engine.captures
    assert "cannot be captured as a CUDA graph" in said[0]
