"""The time, where a device works on after the call that gave it its work has returned."""

import time

import torch


def seconds_on(device: torch.device) -> float:
    """The clock's seconds, once `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
