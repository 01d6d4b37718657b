"""The command line as a process of its own, for tests.

Hundreds of tests run `python -m flatlab`, and most of the time of each would go into importing torch, pandas and
matplotlib. So each command is forked from an interpreter that has imported these, and has compiled what is ours without
running it; what follows is what `python -m` does: its own arguments, environment, current folder, path, output and exit
code. What was imported is kept from the garbage collector, and is not taken down at the end: both would copy its memory
for every command.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

Done = subprocess.CompletedProcess[str]

ROOT = Path(__file__).parents[1]
_THEIRS = (
    "torch", "torch.func", "torch.distributed", "torch.fx.experimental.symbolic_shapes", "numpy", "pandas",
    "scipy.stats", "scipy.sparse.linalg", "seaborn", "matplotlib.pyplot", "matplotlib.backends.backend_pdf",
    "fontTools.subset", "typer", "rich.live", "rich.progress", "pydantic.main", "tomli_w", "filelock", "joblib",
    "jinja2", "platformdirs", "pyarrow", "safetensors.torch", "sklearn.datasets", "PIL.Image",
)  # fmt: skip
SECONDS = 400
"""What hangs, rather than being slow beside other work, takes longer."""

QUICK = ("--rounds", "2", "--clients", "6", "--set", "local_epochs=1", "--workers", "1")
"""Options of `train` that end within seconds."""


def flatlab(*words: object, cwd: Path, width: int = 150, first: Path | None = None) -> Done:
    """Run `python -m flatlab WORDS` of this tree in `cwd`, with `first` before everything else on the path."""
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        request = {
            "words": [str(word) for word in words],
            "cwd": str(cwd),
            "environment": environment(width, first),
            "files": [os.devnull, out.name, err.name],
        }
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return Done(["flatlab", *map(str, words)], code, Path(out.name).read_text(), Path(err.name).read_text())


def environment(width: int = 150, first: Path | None = None) -> dict[str, str]:
    """This process's, for a command of this tree."""
    path = [str(folder) for folder in (first, ROOT) if folder] + [os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "COLUMNS": str(width),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }


def program(
    *words: object,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
) -> Done:
    """Run a program to its end, with this tree before all others and the environment's `variables` set."""
    command, own = [str(word) for word in words], environment() | dict(variables or {})
    return subprocess.run(
        command, cwd=cwd, env=own, preexec_fn=before, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def wait_until(done: Callable[[], object], process: "subprocess.Popen[Any] | None" = None) -> None:
    """Return when `done()` is true; fail where it is not in time, or `process` ends first."""
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def is_left(session: int) -> bool:
    """Whether any process of the session that a command started is left."""
    done = subprocess.run(["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True, check=False)
    return bool(done.stdout.split())


@cache
def _server() -> "subprocess.Popen[str]":
    """One for each process of the tests; it ends when its input does. `-P` keeps this folder off the path."""
    own = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own, cwd=tempfile.gettempdir(),
    )  # fmt: skip


def _serve() -> None:
    """Fork a command for every line of standard input, and write its exit code, -9 where it takes too long."""
    atexit.register(_leave)  # before all others, hence run after them
    for name in _THEIRS:
        import_module(name)
    _keep_compiled()
    gc.freeze()
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            _become(request)
            return
        sys.stdout.write(f"{_finished(process)}\n")
        sys.stdout.flush()


def _keep_compiled() -> None:
    """Compile this tree once for all commands: where Python is told to write no bytecode, each would do it again."""
    files = [file for package in ("flatlab", "analysis", "figures") for file in (ROOT / package).rglob("*.py")]
    compiled = {str(file): compile(file.read_bytes(), file, "exec", dont_inherit=True) for file in files}
    usual = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, fullname: str) -> CodeType | None:
        return compiled.get(str(self.path)) or usual(self, fullname)

    SourceFileLoader.get_code = get_code  # type: ignore[assignment,method-assign]


def _finished(process: int) -> int:
    signal.signal(signal.SIGALRM, lambda *_: os.kill(process, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _, status = os.waitpid(process, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return os.waitstatus_to_exitcode(status)


def _become(request: Mapping[str, object]) -> None:
    """Be the command; what it raises is left to the interpreter."""
    words, cwd, environment, files = (request[name] for name in ("words", "cwd", "environment", "files"))
    assert isinstance(words, list)
    assert isinstance(environment, dict)
    assert isinstance(files, list)
    for descriptor, file in enumerate(files):
        opened = os.open(file, os.O_WRONLY if descriptor else os.O_RDONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(str(cwd))
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(cwd), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["flatlab", *words]
    global _code
    _code = 1
    try:
        runpy.run_module("flatlab", run_name="__main__", alter_sys=True)
        _code = 0
    except SystemExit as left:
        _code = left.code if isinstance(left.code, int) else int(left.code is not None)
        raise


_code = 0


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_code)


if __name__ == "__main__":
    _serve()
