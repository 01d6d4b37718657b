"""How many processor cores this process may use, and whether it shares its work with others."""

import os


def available_cores() -> int:
    """Return the cores that the system lets this process use; where it does not say, as on macOS, all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_one_of_many() -> bool:
    """Whether torchrun started this process beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
