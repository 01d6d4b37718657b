"""Random streams: everything random in a run is drawn from (seed, name), never from a shared generator.

A stream depends on nothing but the run's seed and its own name (for instance `"client", t, k` for client k in round t),
so neither the order in which clients are trained nor the process that trains them changes a number.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream_seed(seed: int, *name: str | int) -> int:
    """Return the 63-bit seed of the stream called `name` in a run with `seed`."""
    digest = hashlib.blake2b(repr((seed, *name)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(seed: int, *name: str | int) -> torch.Generator:
    """Return a fresh CPU generator at the start of the stream called `name`."""
    return torch.Generator().manual_seed(stream_seed(seed, *name))


def begin(seed: int) -> None:
    """Set torch's global generators to `seed`, on a GPU too where there is one.

    torch.manual_seed notes for GPUs that are not there who called it, which takes most of a millisecond, or ten.
    """
    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def seeded(seed: int, *name: str | int) -> Iterator[None]:
    """Within the block, torch's global generators, from which models draw, stand at the start of the stream `name`.

    On leaving it they stand where they were: they are the caller's.
    """
    started = torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if started else ()):
            begin(stream_seed(seed, *name))
            yield
    finally:
        if torch.cuda.is_available() and not started:
            # no state to go back to: a GPU not in use yet begins at the seed that the caller gave
            torch.cuda.manual_seed_all(torch.initial_seed())
