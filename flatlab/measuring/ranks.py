"""Data-parallel measurement: what torchrun starts several times, each process with its share of the samples.

    torchrun --nproc-per-node 2 -m flatlab eigs CKPT

analysis/ adds up every product over the processes. Here they meet.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist

from flatlab.errors import UsageError


@contextmanager
def joined(device: str) -> Iterator[bool]:
    """Within the block, the processes that torchrun started, if it did, form a group (gloo on CPUs, nccl on GPUs).

    Yields whether this process is the first, which speaks for all. After the block it goes on alone; the others leave.
    """
    if not dist.is_torchelastic_launched():
        yield True
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    first = dist.get_rank() == 0
    try:
        yield first
        dist.barrier()  # nobody leaves while another still needs its share
    finally:
        dist.destroy_process_group()
    if not first:
        raise SystemExit(0)


def is_first_to_fail(command: str) -> bool:
    """Whether, of the processes that torchrun started for `command`, this one is the first to end in an error.

    It speaks for all; torchrun then ends the others. They meet in torchrun's own store, since a group may be lost.
    """
    if not dist.is_torchelastic_launched() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined]
    return int(store.add(f"flatlab failed: {command}", 1)) == 1


def rank() -> int:
    """This process's number; 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def require_shares(samples: int, of: str) -> None:
    """Raise `UsageError` unless every process gets a sample."""
    if samples < ranks():
        raise UsageError(f"{of} has {samples} samples, too few for {ranks()} processes: start at most {samples}.")
