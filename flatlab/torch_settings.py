"""torch as flatlab computes with it, whatever settings the caller of the Python interface has made for themselves."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch adds up on one thread: the sums of several are rounded in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def usual_settings() -> Iterator[None]:
    """Within the block, tensors are float32 on the CPU unless said otherwise, and gradients are recorded.

    The caller may have another default dtype or device, `torch.no_grad` or `torch.inference_mode`: what they train and
    measure does not depend on it. The settings are the caller's again afterwards.
    """
    before = torch.get_default_dtype()
    # As a mode it takes time at every operation of torch: only where another device is in its place.
    on_cpu = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    with torch.inference_mode(False), torch.enable_grad(), on_cpu:
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
