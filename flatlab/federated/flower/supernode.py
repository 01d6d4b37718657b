"""A node and its SuperNode, Flower's process that speaks to the SuperLink for it, until one of them ends."""

import os
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from flatlab.errors import FlatlabError
from flatlab.federated.flower.node import Node
from flatlab.federated.flower.programs import free_port, program, start, stop
from flatlab.runs.interruption import terminable


@dataclass(frozen=True)
class Connection:
    """How a SuperNode reaches its SuperLink."""

    superlink: str  # host:port
    root_certificates: Path | None  # with which the SuperLink's certificate is checked; None: those of the system
    options: tuple[str, ...] = ()  # further ones of flower-supernode, as --auth-supernode-private-key


def attend(node: Node, connection: Connection) -> None:
    """Answer what the SuperLink sends, until SIGTERM or Ctrl-C; raises `FlatlabError` where the SuperNode ends."""
    log = node.folder / "supernode.log"
    with tempfile.TemporaryDirectory(prefix="flatlab-node-") as folder, terminable(), node:
        socket = Path(folder) / "node"
        supernode = start(_words(connection, socket), log)
        leaving = Event()
        Thread(target=_leave_with, args=(supernode, leaving), daemon=True).start()
        try:
            node.serve(socket)
        except KeyboardInterrupt:
            if supernode.poll() is None:
                raise
            raise FlatlabError(
                f"Flower's SuperNode of {node.share.name} ended (code {supernode.returncode}); {log} says why."
            ) from None
        finally:
            leaving.set()
            stop(supernode)


def _words(connection: Connection, socket: Path) -> list[str]:
    certificates = connection.root_certificates
    words = [program("flower-supernode"), "--superlink", connection.superlink, "--port", str(free_port())]
    words += [] if certificates is None else ["--root-certificates", str(certificates)]
    return [*words, "--node-config", f'socket="{socket}"', *connection.options]


def _leave_with(supernode: "subprocess.Popen[bytes]", leaving: Event) -> None:
    """End this process's service when the SuperNode ends by itself."""
    supernode.wait()
    if not leaving.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
