"""How many processor cores this process may use."""

import os


def available_cores() -> int:
    """Return the cores that the system lets this process use; where it does not say, as on macOS, all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
