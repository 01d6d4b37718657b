"""How a grid is stopped: the first Ctrl-C or SIGTERM lets every cell at work save its state and leave.

The request is a file in the folder of results, which every worker sees, on whatever machine it is. A worker whose
parent is gone stops in the same way, so that no cell goes on unseen and keeps its folder.
"""

import os
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import current_process
from pathlib import Path
from types import FrameType

from flatlab.runs.interruption import SIGNALS, Terminated, ask_to_stop, forget_stop, terminable

POLL_SECONDS = 0.2

LEAVE_SECONDS = 20.0
"""How long an orphaned worker may take to save."""


class Stop:
    """The request that the workers of one call stop; sent to them with their cells."""

    def __init__(self, results: Path) -> None:
        self.path = results / f".stop-{uuid.uuid4().hex}"
        self.number: int | None = None  # of the signal, in the process that got it

    def asked(self) -> bool:
        """Whether the workers are to stop."""
        return self.path.exists()

    def interruption(self) -> KeyboardInterrupt:
        """The exception that stands for the signal."""
        return Terminated() if self.number == signal.SIGTERM else KeyboardInterrupt()

    @contextmanager
    def asked_by_signals(self) -> Iterator[None]:
        """Within the block Ctrl-C or SIGTERM asks the workers to stop; a second one does what it ever did."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}

        def ask(number: int, frame: FrameType | None) -> None:
            if self.number is None:
                self.number = number
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch()
            else:
                signal.signal(number, before[signal.Signals(number)])
                signal.raise_signal(number)

        try:
            for number in SIGNALS:
                signal.signal(number, ask)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.path.unlink(missing_ok=True)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Within the block, in a worker, a request to stop raises `Terminated`; between blocks signals are ignored."""
        if self.asked():
            raise Terminated
        if current_process().name == "MainProcess":
            yield
            return
        in_main = threading.current_thread() is threading.main_thread()
        if in_main:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        forget_stop()
        over, turn = threading.Event(), threading.Lock()
        own = threading.get_ident()
        watch = threading.Thread(target=self._watch, args=(os.getppid(), own, in_main, over, turn), daemon=True)
        try:
            with terminable():
                try:
                    watch.start()
                    yield
                finally:
                    with turn:  # no signal is sent after this
                        over.set()
        finally:
            forget_stop()

    def _watch(self, parent: int, own: int, in_main: bool, over: threading.Event, turn: threading.Lock) -> None:
        while not over.wait(POLL_SECONDS):
            orphaned = os.getppid() != parent
            if not (orphaned or self.asked()):
                continue
            with turn:
                if not over.is_set():
                    ask_to_stop(own)
                    if in_main:  # only there can a signal raise at once; elsewhere the round ends first
                        os.kill(os.getpid(), signal.SIGTERM)
            if orphaned:
                over.wait(LEAVE_SECONDS)
                os._exit(1)
            return
