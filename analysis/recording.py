"""Graphs where the caller records none: what is measured are derivatives, under no_grad and inference_mode too."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor


@contextmanager
def recording() -> Iterator[None]:
    """Within the block (or the function that this decorates) graphs are recorded, and tensors made can be part of them.

    Blocks of no_grad within it are as ever.
    """
    ordinary = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    with ordinary, torch.enable_grad():
        yield


@recording()
def recordable(tensor: Tensor) -> Tensor:
    """The tensor, or of one that was made in inference mode a copy, which can be part of a graph."""
    return tensor.clone() if tensor.is_inference() else tensor
