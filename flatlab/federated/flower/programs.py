"""Flower's programs, and flatlab's nodes, as processes of this machine."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from flatlab.errors import UsageError

STOP_SECONDS = 5.0
"""How long a program has to leave after SIGTERM."""

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, linux/prctl.h


def require_flower(*, simulated: bool = False) -> None:
    """Raise `UsageError` where Flower, or Ray for its simulation, is not installed."""
    if find_spec("flwr") is None:
        raise UsageError("Rounds over Flower need it: pip install 'flatlab[flower]'.")
    if simulated and find_spec("ray") is None:
        raise UsageError("Flower's simulation needs Ray: pip install 'flatlab[flower-simulation]'.")


def program(name: str) -> str:
    """Where the program lies that came with Flower into this Python's environment, or else on the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise UsageError(f"There is no program {name}: pip install 'flatlab[flower]'.")
    return found


def environment(home: Path | None = None) -> dict[str, str]:
    """Of a Flower program: it finds the others, past any proxy those of this machine, tells nobody of itself, and looks
    for work ten times a second.

    `home` is Flower's own folder.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    own = {} if home is None else {"FLWR_HOME": str(home)}
    for name in ("no_proxy", "NO_PROXY"):
        own[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    return {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1", **os.environ} | {
        "PATH": path,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        **own,
    }


def start(words: Sequence[str], log: Path, home: Path | None = None) -> "subprocess.Popen[bytes]":
    """Start a program that writes to the end of `log`, and ends with this process, on Linux even if that is killed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            words,
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which ends them when it has saved
            preexec_fn=_tied(os.getpid()),
        )


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a program, and what it leaves behind of its own."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    """A port of the loopback that nobody uses at this moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _tied(parent: int) -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def tie() -> None:
        prctl(_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return tie
