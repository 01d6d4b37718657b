"""Data-parallel measurement: what torchrun starts several times, each process with its share of the samples.

    torchrun --nproc-per-node 2 -m flatlab eigs CKPT

analysis/ adds up every product over the processes. Here they meet.
"""

import math
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import numpy as np
import torch
from torch import distributed as dist

from analysis.distributed import Distributed, LostRankError, collective
from flatlab.errors import FlatlabError, UsageError, shown
from flatlab.runs.interruption import Terminated

TIMEOUT = "FLATLAB_TIMEOUT"
"""The environment variable that says how many seconds a process waits for another before it takes it for lost."""

TIMEOUT_SECONDS = 600.0


@contextmanager
def joined(device: str) -> Iterator[bool]:
    """Within the block, the processes that torchrun started, if it did, form a group (gloo on CPUs, nccl on GPUs).

    Yields whether this process is the first, which speaks for all. After the block it goes on alone; the others leave.
    Raises `FlatlabError` where another process ended or does not answer, and where torchrun ends them all.
    """
    if not dist.is_torchelastic_launched():
        yield True
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(_own_gpu(device))
    backend = "nccl" if device.startswith("cuda") else "gloo"
    with _ended_together(seconds := _timeout()):
        with collective():
            dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
        first = dist.get_rank() == 0
        try:
            yield first
            with collective():
                dist.barrier()  # nobody leaves while another still needs its share
        finally:
            dist.destroy_process_group()
    if not first:
        raise SystemExit(0)


def _own_gpu(device: str) -> int:
    """The number of this process's GPU, its own among those that torchrun started here; raises `UsageError`."""
    number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device != "cuda":
        raise UsageError(f"Under torchrun every process takes a GPU of its own: --device cuda, not {device}.")
    if number >= there:
        raise UsageError(
            f"torchrun started a process {number + 1} here, and there are {there} GPUs: --nproc-per-node {there}."
        )
    return number


def _timeout() -> float:
    words = os.environ.get(TIMEOUT, str(TIMEOUT_SECONDS))
    try:
        seconds = float(words)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e6:
        raise UsageError(f"{TIMEOUT} is a number of seconds above 0, not {shown(words)}.")
    return seconds


@contextmanager
def _ended_together(seconds: float) -> Iterator[None]:
    """Within the block, what happens because of another process is one `FlatlabError`.

    torchrun sends SIGTERM to all others as soon as one ends in an error. The first signal raises; from then on they
    are ignored, as they are once another was lost, so that what there is to say gets out.
    """
    in_main = threading.current_thread() is threading.main_thread()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, end) if in_main else None
    try:
        yield
    except Terminated as error:
        raise FlatlabError("Another process of this measurement failed, or torchrun was told to end.") from error
    except LostRankError as error:
        if in_main:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise FlatlabError(
            f"Another process of this measurement ended, or did not answer for {seconds:g} s ({TIMEOUT}): start it "
            "again; what was saved before stays."
        ) from error
    if in_main:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def is_first_to_fail(command: str) -> bool:
    """Whether, of the processes that torchrun started for `command`, this one is the first to end in an error.

    It speaks for all; torchrun then ends the others. They meet in torchrun's own store, since a group may be lost.
    """
    if not dist.is_torchelastic_launched() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined]
    return int(store.add(f"flatlab failed: {command}", 1)) == 1


def seed_alike() -> None:
    """Let every process draw the same numbers from here on, as functions of the user's do that know of one alone."""
    if ranks() == 1:
        return
    drawn = [torch.initial_seed() % 2**32]
    with collective():
        dist.broadcast_object_list(drawn)
    torch.manual_seed(drawn[0])
    np.random.seed(drawn[0])
    random.seed(drawn[0])


def require_alike(what: str, said: str) -> None:
    """Raise `UsageError` with what is `said` unless every process comes with the same text."""
    if ranks() == 1:
        return
    found: list[str] = [""] * ranks()
    with collective():
        dist.all_gather_object(found, what)
    if len(set(found)) > 1:
        raise UsageError(said)


def summed_over_ranks(number: int) -> int:
    """The sum of a 64-bit number over all processes, modulo 2^64."""
    found: list[int] = [number] * ranks()
    if ranks() > 1:
        with collective():
            dist.all_gather_object(found, number)
    return sum(found) % 2**64


def rank() -> int:
    """This process's number; 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def spread(samples: int) -> Distributed:
    """How so many samples are held: by one process, in shares, or, where there are too few, in copies by all."""
    return ranks() > 1 and (True if samples >= ranks() else "copies")
