"""The C allocator's habit of giving memory back, switched off for training and curvature work."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_NEVER = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for reuse; does nothing on other platforms.

    A step frees and allocates activations of megabytes. By default glibc returns such blocks to the kernel, and the
    next step pays a page fault for every 4 KiB: a tenth to a third of a CNN's step (benchmarks/README.md).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _NEVER)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
