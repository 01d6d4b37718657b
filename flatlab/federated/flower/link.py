"""The server's end of Flower: starts the ServerApp of `carriers.py` on a SuperLink, and speaks through it to nodes."""

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from threading import Thread
from typing import Any

from flatlab.errors import LONGEST, FlatlabError, UsageError
from flatlab.federated.flower.programs import environment, program
from flatlab.files import write_text

START_SECONDS = 120.0
"""How long the SuperLink may take to start the ServerApp."""

PYPROJECT = """\
[project]
name = "flatlab-rounds"
version = "1.0.0"
description = "Carries flatlab's rounds between its server and its nodes"
license = "MIT"
dependencies = []

[tool.flwr.app]
publisher = "flatlab"

[tool.flwr.app.components]
serverapp = "rounds:server"
clientapp = "rounds:client"

[tool.flwr.app.config]
socket = ""
nodes = ""
"""

APP = """\
from flatlab.federated.flower import carriers

server = carriers.server
client = carriers.client
"""
"""Flower looks for two assignments in the text, without running it."""


@dataclass(frozen=True)
class Reply:
    """What came back for one message."""

    id: str  # of the message
    payload: bytes | None  # None: none came
    reason: str = ""  # why not, as Flower says


class Link:
    """Messages to Flower's nodes by way of a SuperLink, whose connection Flower's configuration calls `superlink`.

    The ServerApp runs where the SuperLink does, which is to be this machine: they meet on a Unix socket. `home` is
    Flower's own folder, the user's by default; of a simulation it holds the sockets of the nodes.
    """

    def __init__(self, superlink: str, home: Path | None = None, simulated: int = 0) -> None:
        self.superlink, self.home, self.simulated = superlink, home, simulated
        self.sent = self.received = 0  # bytes of messages and of replies
        self.stack = ExitStack()

    def __enter__(self) -> "Link":
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="flatlab-")))
        listener = self.stack.enter_context(Listener(str(folder / "server"), "AF_UNIX"))
        try:
            self._start(folder)
            self.connection = self.stack.enter_context(_accepted(listener))
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    def nodes(self) -> list[int]:
        """Flower's numbers of the nodes that it holds to be there; one that died is among them for a minute."""
        answer, _ = self._ask({"do": "nodes"})
        return [int(node) for node in answer["nodes"]]

    def push(self, messages: Sequence[tuple[int, bytes]], group: str) -> list[str]:
        """Send (node, bytes) each, and return the messages' ids."""
        answer, _ = self._ask({"do": "push", "to": [node for node, _ in messages], "group": group}, messages)
        self.sent += sum(len(payload) for _, payload in messages)
        ids = [str(identity) for identity in answer["ids"]]
        if len(ids) != len(messages) or "None" in ids:
            raise FlatlabError("Flower's SuperLink did not take the round's messages; its log says why.")
        return ids

    def pull(self, ids: Sequence[str]) -> list[Reply]:
        """Return the replies to the messages `ids` that are there."""
        answer, payloads = self._ask({"do": "pull", "ids": list(ids)})
        rest = iter(payloads)
        self.received += sum(map(len, payloads))
        return [
            Reply(said["id"], next(rest)) if said["reason"] is None else Reply(said["id"], None, said["reason"])
            for said in answer["replies"]
        ]

    def _ask(
        self, asked: Mapping[str, object], messages: Sequence[tuple[int, bytes]] = ()
    ) -> tuple[dict[str, Any], list[bytes]]:
        try:
            self.connection.send_bytes(json.dumps(asked).encode())
            for _, payload in messages:
                self.connection.send_bytes(payload)
            answer = json.loads(self.connection.recv_bytes())
            payloads = [self.connection.recv_bytes() for said in answer.get("replies", ()) if said["reason"] is None]
        except (EOFError, OSError) as error:
            raise FlatlabError(
                "Flower's ServerApp or SuperLink ended in the middle of a round; what was saved is safe: start it "
                "again and go on with --resume."
            ) from error
        return answer, payloads

    def _start(self, folder: Path) -> None:
        """Submit the app to the SuperLink."""
        app = folder / "flatlab-rounds"
        write_text(app / "pyproject.toml", PYPROJECT)
        write_text(app / "rounds.py", APP)
        settings = {"socket": str(folder / "server"), "nodes": str(self.home or "")}
        words = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
        command = [program("flwr"), "run", str(app), self.superlink, "--run-config", words, "--format", "json"]
        if self.simulated:
            resources = (
                f"num-supernodes={self.simulated} init-args-num-cpus={self.simulated} client-resources-num-cpus=1"
            )
            command += ["--federation-config", resources]
        done = subprocess.run(
            command,
            env=environment(self.home),
            capture_output=True,
            text=True,
        )
        if done.returncode or not _succeeded(done.stdout):
            said = _complaint(done.stdout, done.stderr)
            raise UsageError(
                f"Flower could not start a run on the SuperLink {self.superlink} ({said}): look at flwr config list, "
                "and whether the SuperLink is up."
            )


def _succeeded(text: str) -> bool:
    """Whether a Flower program's JSON says so; its exit code does not."""
    with suppress(ValueError, KeyError, TypeError):
        return bool(json.loads(text)["success"])
    return False


def _complaint(*texts: str) -> str:
    """What a program said in the end, on one line: the message of its JSON where there is one."""
    for text in texts:
        with suppress(ValueError, KeyError, TypeError):
            return " ".join(str(json.loads(text)["error-message"]).split()).rstrip(".")
    return next((" ".join(text.split())[-LONGEST:] for text in texts if text.strip()), "it does not say why")


def _accepted(listener: Listener) -> Connection:
    """The first who connects; raises `FlatlabError` where nobody does in time."""
    found: list[Connection] = []
    waiting = Thread(target=lambda: found.append(listener.accept()), daemon=True)
    waiting.start()
    deadline = time.monotonic() + START_SECONDS
    while waiting.is_alive() and time.monotonic() < deadline:
        waiting.join(0.1)  # in pieces, so that Ctrl-C is heard
    if not found:
        raise FlatlabError(
            f"Flower's SuperLink did not start the ServerApp within {START_SECONDS:.0f} s; is flatlab[flower] "
            "installed where it runs, and is that this machine?"
        )
    return found[0]
