"""Ctrl-C and SIGTERM as exceptions that come where a run can be left, never in the middle of a change to its folder."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came: a batch system's warning, or a container's stop."""


def exit_status(interruption: KeyboardInterrupt) -> int:
    """128 and the number of the signal, as a shell has it: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT)


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGTERM raises `Terminated` in the main thread; in another thread the block is as any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM that come within the block come as it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {number: signal.signal(number, lambda number, _: held.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if held:
            signal.raise_signal(held[0])


_asked: set[int] = set()
"""Threads, by their numbers."""


def ask_to_stop(thread: int) -> None:
    """Make `stop_if_asked` raise in a thread that trains, by its number; signals reach the main thread alone."""
    _asked.add(thread)


def forget_stop() -> None:
    """Take `ask_to_stop` back, before the next run of this thread."""
    _asked.discard(threading.get_ident())


def stop_if_asked() -> None:
    """Raise `Terminated` if this thread was asked to stop."""
    if threading.get_ident() in _asked:
        raise Terminated


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
