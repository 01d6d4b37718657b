"""Sums over the ranks of a data-parallel run (torchrun; gloo on CPUs, nccl on GPUs).

Every rank holds its share of the data and the same parameters. Products are summed over ranks in float64, so each rank
goes through the same iteration with the same vectors.
"""

import torch
from torch import Tensor
from torch import distributed as dist

from analysis.errors import MeasurementError


def require_ranks() -> None:
    """Raise `MeasurementError` unless a process group is up."""
    if not (dist.is_available() and dist.is_initialized()):
        raise MeasurementError(
            "Distributed data need a process group: start with torchrun and call init_process_group first."
        )


def summed(share: Tensor, distributed: bool) -> Tensor:
    """The sum of `share` over all ranks, in place, or `share` itself in a run of one process."""
    if distributed:
        dist.all_reduce(share)
    return share


def summed_number(share: float, device: torch.device, distributed: bool) -> float:
    """The sum of a number over all ranks."""
    if not distributed:
        return share
    return float(summed(torch.tensor(share, dtype=torch.float64, device=device), True))
