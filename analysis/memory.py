"""How many samples to differentiate at once, and for how many to keep the graphs, within a budget of bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from analysis.batches import Batch, batch_length, moved, sliced, tensors
from analysis.derivatives import gradients, graph_results
from analysis.distributed import Distributed, least
from analysis.members import parameters_of
from analysis.parametric_loss import ParametricLoss

DEFAULT_MEMORY = 1 << 30
"""Bytes that first-order graphs may take unless the caller says otherwise, and vectors as many again."""

_CPU_CHUNK = 40 << 20  # bytes of graph per chunk; larger chunks fall out of the CPU's cache and run slower per sample
_OF_PARAMETERS = 12  # times their bytes of graph: every chunk costs work on vectors of their size as well
_WORKSPACE = 2  # differentiating a graph a second time takes about as much again while it lasts


@dataclass(frozen=True)
class ChunkPlan:
    """Sizes in samples."""

    chunk_size: int
    cached_samples: int

    def agreed(self, device: torch.device, distributed: Distributed) -> "ChunkPlan":
        """The smallest sizes over all ranks."""
        return ChunkPlan(*least((self.chunk_size, self.cached_samples), device, distributed))


def vectors_that_fit(problem: ParametricLoss) -> int:
    """How many vectors of the parameters' size the memory budget holds; of a selection of none, any number does."""
    return problem.memory // (max(1, problem.size) * problem.dtype.itemsize)


def plan_chunks(problem: ParametricLoss, first: Batch, memory: int, chunk_size: int | None) -> ChunkPlan:
    """Choose the chunk from the bytes that a sample's first-order graph takes, measured on a few of `first`."""
    per_sample = max(1, graph_bytes_per_sample(problem, first))
    if chunk_size is None:
        budget = memory // _WORKSPACE
        if problem.device.type == "cpu":
            parameters = problem.size * problem.dtype.itemsize
            budget = min(budget, max(_CPU_CHUNK, min(_OF_PARAMETERS * parameters, budget // 2)))  # half is for graphs
        chunk_size = max(1, budget // per_sample)
    spare = memory - _WORKSPACE * chunk_size * per_sample
    return ChunkPlan(chunk_size, max(0, spare // per_sample))


def graph_bytes_per_sample(problem: ParametricLoss, first: Batch) -> int:
    """Bytes of the tensors that a gradient with its graph keeps alive, per sample, beside parameters and data."""
    few = min(8, batch_length(first))
    inputs, targets = moved(sliced(first, 0, few), problem.device, problem.dtype)
    given = [*parameters_of(problem.model), *tensors((inputs, targets))]
    not_counted = {tensor.untyped_storage().data_ptr() for tensor in given}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_counted:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a saved output that knows its graph would keep the graph alive for good

    def unpack(tensor: Any) -> Any:
        return tensor

    def gradient() -> Sequence[Tensor]:
        leaves = problem.leaves()
        loss = problem.share((inputs, targets), leaves).total
        return gradients([loss], list(leaves.values()), create_graph=True)

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            gradient()
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        results = graph_results(gradient())  # torch.func runs under no hooks: as if all that is computed were kept
        return sum(int(math.prod(result.shape)) * int(result.dtype.itemsize) for result in results) // few
    return sum(kept.values()) // few
