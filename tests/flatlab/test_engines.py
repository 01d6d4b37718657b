"""Every engine gives the same round: worker processes bit for bit, the stack to rounding."""

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from flatlab.errors import UsageError
from flatlab.federated.engine.base import Engine
from flatlab.federated.engine.batched import BatchedEngine
from flatlab.federated.engine.process import ProcessEngine
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.engine.streams import StreamsEngine
from flatlab.federated.participants import most_participants
from flatlab.federated.rounds import Run, train
from flatlab.federated.world import World
from flatlab.runs.metrics import Record

FLOAT32_CNN: dict[str, Any] = {
    "sizes": (9, 14, 11, 6),
    "shape": (3, 20, 20),
    "model": "cifar-cnn",
    "augment": True,
    "dtype": "float32",
    "batch_size": 5,
    "lr": 0.05,
    "rounds": 3,
    "eval_every": 1,
    "algorithm": "feddc",
    "man": True,
    "report": "all",
}

TIMES = ("seconds", "images_per_second", "evaluation_seconds")


def history(world: World, folder: Path, engine: Engine) -> tuple[Run, list[Record]]:
    run, records = Run(world, folder), []
    run.begin()
    with engine:
        train(run, engine, lambda record: records.append({k: v for k, v in record.items() if k not in TIMES}))
    return run, records


@pytest.mark.parametrize(
    ("name", "workers"), [("feddc", (2, 3)), ("fedsmoo", (2,)), ("fedwmsam", (2,)), ("fedgf", (2,))]
)
def test_the_number_of_workers_changes_no_bit(
    name: str, workers: tuple[int, ...], toy_world: Callable[..., World], tmp_path: Path
) -> None:
    world = toy_world(**{**FLOAT32_CNN, "algorithm": name, "swa_start": 0.3, "swa_every": 1})
    run, records = history(world, tmp_path / "1", SequentialEngine(world))
    for count in workers:
        engine = ProcessEngine(world, count, most_participants(world.config))
        other, others = history(world, tmp_path / str(count), engine)
        assert torch.equal(other.server.w, run.server.w)
        assert torch.equal(other.models()["all"], run.models()["all"])
        assert others == records


def few_ready(world: World) -> Engine:
    """Streams of two slots, for which the samples of three steps lie ready at a time."""
    with patch("flatlab.federated.engine.slots.WAITING", 3 * 2 * 5 * 3 * 20 * 20 * world.dtype.itemsize):
        engine = StreamsEngine(world, torch.device("cpu"), slots=2)
    assert engine.slots.ahead == 3
    return engine


@pytest.mark.parametrize("open_other", [lambda world: BatchedEngine(world, torch.device("cpu")), few_ready])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_engine_of_devices_agrees_with_the_sequential_engine(
    dtype: str, open_other: Callable[[World], Engine], toy_world: Callable[..., World], tmp_path: Path
) -> None:
    world = toy_world(**{**FLOAT32_CNN, "dtype": dtype})
    run, records = history(world, tmp_path / "1", SequentialEngine(world))
    other, others = history(world, tmp_path / "2", open_other(world))
    close = {"float32": 1e-5, "float64": 1e-12}[dtype]
    torch.testing.assert_close(other.server.w, run.server.w, rtol=close, atol=close)
    for record, theirs in zip(records, others, strict=True):
        assert theirs["images"] == record["images"]
        assert theirs["train_loss"] == pytest.approx(record["train_loss"], rel=10 * close)
        assert theirs["activation_norm"] == pytest.approx(record["activation_norm"], rel=10 * close)


def test_a_stack_that_does_not_fit_is_cut(
    toy_world: Callable[..., World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = toy_world(participation=1.0)
    run, _ = history(world, tmp_path / "1", SequentialEngine(world))
    engine = BatchedEngine(world, torch.device("cpu"))
    forward, fails = engine.model.forward, [True, True]

    def short_of_memory(x: Tensor) -> Tensor:
        if fails and fails.pop():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        logits: Tensor = forward(x)
        return logits

    monkeypatch.setattr(engine.model, "forward", short_of_memory)
    other, _ = history(world, tmp_path / "2", engine)
    assert engine.together == math.ceil(len(world.parts) / 4)
    torch.testing.assert_close(other.server.w, run.server.w, rtol=1e-12, atol=1e-12)

    fails[:] = [True] * 9
    with pytest.raises(UsageError, match="no memory for a local step of mlp"):
        history(world, tmp_path / "3", engine)


def test_a_dead_worker_is_one_sentence(toy_world: Callable[..., World], tmp_path: Path) -> None:
    import os
    import signal

    from flatlab.errors import FlatlabError

    world = toy_world(rounds=50)
    run = Run(world, tmp_path)
    with ProcessEngine(world, 1, most_participants(world.config)) as engine:
        run.advance(engine)
        (worker,) = engine.pool._processes
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(FlatlabError, match="worker process died"):
            run.advance(engine)


def test_what_a_world_knows_of_all_clients_is_made_once(toy_world: Callable[..., World]) -> None:
    world = toy_world(sizes=(3, 5, 8))
    assert world.samples is world.samples
    assert world.wt is world.wt
    w = torch.zeros(world.layout.size)
    world.client(0, 1, w, {}, {}).wt.zero_()  # a method of the user's may
    assert world.wt.flatten().tolist() == pytest.approx([9 / 16, 15 / 16, 24 / 16])
    assert torch.equal(pickle.loads(pickle.dumps(world)).wt, world.wt)
    assert replace(world, parts=world.parts[:2]).samples.flatten().tolist() == [3, 5]
