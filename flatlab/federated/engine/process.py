"""Clients in worker processes of one thread each, fed from one queue.

On a CPU two processes of one thread train faster than one process of two (benchmarks/README.md). Weights, client
vectors and images lie in shared memory; only client numbers and losses pass through pipes.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, multiprocessing, nn

from flatlab.data import Split
from flatlab.errors import FlatlabError
from flatlab.federated.engine.base import Engine, Evaluation, Means, RoundInputs, RoundOutputs
from flatlab.federated.engine.sequential import (
    SequentialEngine,
    add_up,
    chunk_starts,
    score_chunk,
    train_client,
)
from flatlab.federated.world import World
from flatlab.functions import let_run
from flatlab.malloc import keep_freed_memory

MODELS = 4
"""Most models evaluated at once: the server's, its average, and those over the selected and over all clients.

An algorithm's further models wait for these.
"""

LEAVE_SECONDS = 5.0
"""How long a worker stays after SIGTERM, unless the server ends it before."""

WORKER_DIED = (
    "A worker process died (out of memory, or killed); what was saved is safe: "
    "go on with --resume, and with fewer --workers if memory is short."
)

T = TypeVar("T")


@dataclass(frozen=True)
class Shared:
    """The tensors that the server and the workers both see."""

    w: Tensor  # (P,)
    server: dict[str, Tensor]  # name: (P,) or a shape of its own, the server's vectors
    own: Tensor  # (slots, V, P), the participants' vectors in the order of Algorithm.own: out and back
    theta: Tensor  # (slots, P), back
    models: Tensor  # (MODELS, P), to be evaluated


def open_engine(world: World, means: Means) -> Engine:
    """As many processes as there are workers and participants; a single one needs no process of its own."""
    workers = min(means.workers, means.slots)
    return SequentialEngine(world) if workers == 1 else ProcessEngine(world, workers, means.slots)


class ProcessEngine:
    """Runs the round's clients in `workers` processes; `slots` is the largest number of participants of any round."""

    def __init__(self, world: World, workers: int, slots: int) -> None:
        size, rules = world.layout.size, world.config.rules
        self.world = world
        _, server = world.initial(torch.zeros(size, dtype=world.dtype))
        self.shared = Shared(
            w=_shared(size, dtype=world.dtype),
            server={name: _shared(*first.shape, dtype=world.dtype) for name, first in server.items()},
            own=_shared(slots, len(rules.own), size, dtype=world.dtype),
            theta=_shared(slots, size, dtype=world.dtype),
            models=_shared(MODELS, size, dtype=world.dtype),
        )
        data = replace(world.data, train=_share(world.data.train), test=_share(world.data.test))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.pool = ProcessPoolExecutor(
            workers, context, initializer=_start_worker, initargs=(replace(world, data=data), self.shared)
        )

    def run(self, inputs: RoundInputs) -> RoundOutputs:
        """Train the participants of one round."""
        rules = self.world.config.rules
        self.shared.w.copy_(inputs.w)
        for name, vector in inputs.server.items():
            self.shared.server[name].copy_(vector)
        participants = range(len(inputs.ids))
        for row, name in enumerate(rules.own):
            self.shared.own[: len(inputs.ids), row].copy_(inputs.own[name])
        jobs = [self._submit(_train, inputs.t, inputs.ids[slot], slot) for slot in participants]
        back = [_result(job) for job in jobs]
        return RoundOutputs(
            theta=self.shared.theta[: len(inputs.ids)].clone(),
            after={name: self.shared.own[: len(inputs.ids), row].clone() for row, name in enumerate(rules.own)},
            losses=[loss for loss, _ in back],
            images=sum(samples for _, samples in back),
        )

    def evaluate(self, models: Sequence[Tensor]) -> list[Evaluation]:
        """Evaluate each flat vector (P,) on the test set."""
        return [score for first in range(0, len(models), MODELS) for score in self._evaluate(models[first:][:MODELS])]

    def _evaluate(self, models: Sequence[Tensor]) -> list[Evaluation]:
        test = self.world.data.test
        for row, vector in enumerate(models):
            self.shared.models[row].copy_(vector)
        jobs = [[self._submit(_score, row, start) for start in chunk_starts(test)] for row in range(len(models))]
        scores = [[_result(job) for job in chunks] for chunks in jobs]
        return [add_up(chunks, len(test.labels)) for chunks in scores]

    def _submit(self, work: Callable[..., T], *arguments: int) -> Future[T]:
        try:
            with _without_script():
                return self.pool.submit(work, *arguments)
        except BrokenProcessPool as error:  # a worker died since the last round
            raise FlatlabError(WORKER_DIED) from error

    def __enter__(self) -> "ProcessEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _without_script() -> Iterator[None]:
    """Within the block, a worker that starts does not run the user's script again, as multiprocessing has it do.

    Nothing in it is needed there, and a script that trains at its top level would train once more in every worker.
    """
    main = sys.modules["__main__"].__dict__
    hidden: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        del main["__spec__"]
        main.update(hidden)


def _result(job: Future[T]) -> T:
    try:
        return job.result()
    except BrokenProcessPool as error:
        raise FlatlabError(WORKER_DIED) from error


def _shared(*shape: int, dtype: torch.dtype) -> Tensor:
    zeros: Tensor = torch.zeros(shape, dtype=dtype).share_memory_()
    return zeros


def _share(split: Split) -> Split:
    return Split(split.images.clone().share_memory_(), split.labels.clone().share_memory_())


@dataclass(frozen=True)
class _Worker:
    """What a worker process holds between jobs."""

    world: World
    shared: Shared
    model: nn.Module


_worker: _Worker


def _start_worker(world: World, shared: Shared) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the server decides what it means
    signal.signal(signal.SIGTERM, _leave_soon)  # so may SIGTERM, and the server wants to save before its workers go
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    keep_freed_memory()
    let_run(world.config.algorithm)  # the process that sent it has asked
    _worker = _Worker(world, shared, world.new_model())


def _leave_soon(number: int, frame: FrameType | None) -> None:
    timer = threading.Timer(LEAVE_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train(t: int, k: int, slot: int) -> tuple[float, int]:
    shared, rules = _worker.shared, _worker.world.config.rules
    own = dict(zip(rules.own, shared.own[slot], strict=True))
    result = train_client(_worker.world, _worker.model, t, k, shared.w, own, shared.server)
    shared.theta[slot].copy_(result.theta)
    if own:  # read all before any is written: one may be what another was
        shared.own[slot].copy_(torch.stack([result.own[name] for name in own]))
    return result.loss, result.samples


def _score(row: int, start: int) -> list[float]:
    sums: list[float] = score_chunk(_worker.world, _worker.model, _worker.shared.models[row], start).tolist()
    return sums
