"""A run's whole state brought to the disk in a thread of its own, while the next rounds are trained."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flatlab.federated.state import ClientState
from flatlab.runs.folder import RunFolder


@dataclass(frozen=True)
class Save:
    """One that is being written."""

    round: int
    clients: dict[int, str]  # client: its file
    written: "Future[None]"


class Saves:
    """The saves of one run, one at a time; `round` is that of the newest that is complete."""

    def __init__(self, files: RunFolder, clients: ClientState) -> None:
        self.files, self.clients = files, clients
        self.round, self.began = 0, time.monotonic()
        self._pending: Save | None = None
        self._thread: ThreadPoolExecutor | None = None  # from the first save until `leave`

    def begin(self, round_: int, files: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """Begin to write the state after `round_`: the clients' `files`, and then resume.pt with `content`.

        The save before has ended. Nothing may change the tensors, which lie on the host: a GPU copies none while
        another thread captures a graph.
        """
        self.began = time.monotonic()
        self._thread = self._thread or ThreadPoolExecutor(1, "save")
        self._pending = Save(round_, dict(self.clients.files), self._thread.submit(self._write, files, content))

    def end(self) -> None:
        """Wait for the save that is being written, if any; raises `WriteError` where it could not be."""
        save, self._pending = self._pending, None
        if save is not None:
            save.written.result()
            self.clients.forget_others(save.clients)
            self.round = save.round

    def end_if_written(self) -> None:
        """`end`, where there is nothing to wait for."""
        if self._pending is not None and self._pending.written.done():
            self.end()

    def leave(self) -> None:
        """Wait until nothing more is written to the folder, however that went, and let the thread go."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _write(self, files: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        self.clients.write_files(files)
        self.files.save(content)
