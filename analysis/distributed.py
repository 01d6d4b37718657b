"""Sums over the ranks of a data-parallel run (torchrun; gloo on CPUs, nccl on GPUs).

Every rank holds its share of the data and the same parameters. Products are summed over ranks in float64, so each rank
goes through the same iteration with the same vectors. Where there are fewer samples than ranks each has "copies" of
them all, and what the first makes of them counts: even on machines that round unlike, all ranks go the same way.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from analysis.errors import MeasurementError

T = TypeVar("T")

Distributed = bool | Literal["copies"]
"""Whether the ranks of the process group hold shares of the data, or copies of them all."""


class LostRankError(MeasurementError):
    """Another rank has ended, or did not answer in time."""


@contextmanager
def collective() -> Iterator[None]:
    """Within the block ranks meet; raises `LostRankError` where one does not come."""
    try:
        yield
    except RuntimeError as error:  # gloo raises plain ones
        raise LostRankError("Another rank has ended, or did not answer in time.") from error


def require_ranks() -> None:
    """Raise `MeasurementError` unless a process group is up."""
    if not (dist.is_available() and dist.is_initialized()):
        raise MeasurementError(
            "Distributed data need a process group: start with torchrun and call init_process_group first."
        )


def summed(share: Tensor, distributed: Distributed) -> Tensor:
    """The sum of `share` over all ranks, in place, or `share` itself in a run of one process."""
    with collective():
        if distributed == "copies":
            dist.broadcast(share, 0)
        elif distributed:
            dist.all_reduce(share)
    return share


def summed_number(share: float, device: torch.device, distributed: Distributed) -> float:
    """The sum of a number over all ranks."""
    if not distributed:
        return share
    return float(summed(torch.tensor(share, dtype=torch.float64, device=device), distributed))


def greatest(numbers: Sequence[float], device: torch.device, distributed: Distributed) -> list[float]:
    """Each number's largest value over all ranks."""
    if not distributed:
        return list(numbers)
    shared = torch.tensor(numbers, dtype=torch.float64, device=device)
    with collective():
        dist.all_reduce(shared, dist.ReduceOp.MAX)
    return [float(number) for number in shared]


@contextmanager
def failing_together(device: torch.device, distributed: Distributed) -> Iterator[None]:
    """Raise on every rank what the block raises on one of them: ranks that wait for one that stopped wait for ever.

    The others raise a `MeasurementError` with the message of the first rank that failed. All ranks must come here.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if not distributed:
            raise
        failure = error
    if not distributed:
        return
    rank, ranks = dist.get_rank(), dist.get_world_size()
    first = int(_least(rank if failure else ranks, device))
    if failure:
        message = torch.tensor(list(str(failure).encode()), dtype=torch.uint8, device=device)
    if first < ranks:
        length = torch.tensor(len(message) if failure else 0, device=device)
        with collective():
            dist.broadcast(length, first)
            said = message if rank == first else torch.empty(int(length), dtype=torch.uint8, device=device)
            dist.broadcast(said, first)
        if failure:
            raise failure
        raise MeasurementError(f"On rank {first}: {bytes(said.tolist()).decode()}")


def least(numbers: Sequence[int], device: torch.device, distributed: Distributed) -> list[int]:
    """Each number's smallest value over all ranks, by which they decide alike."""
    return [int(_least(number, device)) for number in numbers] if distributed else list(numbers)


def of_the_rank_before(own: T, device: torch.device, distributed: Distributed) -> T | None:
    """What the rank before has, of the first rank the last; None where the ranks do not share out the data."""
    if distributed is not True:
        return None
    found: list[T | None] = [None] * dist.get_world_size()
    on_own_gpu = torch.cuda.device(device) if device.type == "cuda" else nullcontext()  # nccl's objects go that way
    with collective(), on_own_gpu:
        dist.all_gather_object(found, own)
    return found[dist.get_rank() - 1]


def _least(number: int, device: torch.device) -> Tensor:
    shared = torch.tensor(number, device=device)
    with collective():
        dist.all_reduce(shared, dist.ReduceOp.MIN)
    return shared
