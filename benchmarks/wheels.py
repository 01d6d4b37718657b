"""`python -m benchmarks wheels`: does the built wheel work on every Python it says it does?

The wheel is built once from this tree. On each Python from 3.11 to 3.14 that is found on PATH or under pyenv, it is
installed into a new virtual environment without its dependencies, every module is compiled, and the commands that
import nothing heavy are run with typer alone, as constraints.txt pins it: --version, --help, and the shell's
completion. `wheels.full` installs all dependencies, as pinned (gigabytes where the index has torch with CUDA alone),
and trains and measures one round.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
MINORS = range(11, 15)

LIGHT = (("--version",), ("--help",), ("--show-completion", "bash"))
FULL = (("train", "--rounds", "1", "--clients", "4", "--out", "run"), ("eigs", "run", "--samples", "50"), ("doctor",))


def main(part: str = "") -> None:
    """Print a line per interpreter; exits with 1 if one fails."""
    failed = False
    with TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        print(wheel.name)
        for minor in MINORS:
            python = interpreter(minor)
            problem = None if python is None else tried(python, wheel, Path(folder) / f"3.{minor}", part == "full")
            failed |= bool(problem)
            said = "no interpreter here" if python is None else problem or "works"
            print(f"3.{minor}  {python or ''}  {said}", flush=True)
    if failed:
        sys.exit(1)


def build(folder: Path) -> Path:
    """Build the wheel from a copy of the tree, which build/ of an earlier one would find its way into."""
    ignored = shutil.ignore_patterns(".*", "build", "checkpoints", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "tree", ignore=ignored)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(folder / "tree"))
    (wheel,) = folder.glob("flatlab-*.whl")
    return wheel


def interpreter(minor: int) -> str | None:
    """The newest 3.minor that runs, of pyenv or PATH."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates: Iterator[str | None] = iter(
        [*map(str, sorted(root.glob(f"versions/3.{minor}.*/bin/python"))[::-1]), shutil.which(f"python3.{minor}")]
    )
    for candidate in candidates:
        if candidate and subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def tried(python: str, wheel: Path, folder: Path, full: bool) -> str:
    """Install into a new environment and run; returns what went wrong, or nothing."""
    constraints = ("--constraint", str(ROOT / "constraints.txt"))
    inside = str(folder / "bin" / "python")
    try:
        run(python, "-m", "venv", str(folder))
        if full:
            run(inside, "-m", "pip", "install", "--quiet", *constraints, str(wheel))
        else:
            run(inside, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel))
            run(inside, "-m", "pip", "install", "--quiet", *constraints, "typer")
        site = run(inside, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        run(inside, "-m", "compileall", "-q", *(f"{site}/{name}" for name in ("flatlab", "analysis", "figures")))
        for words in (*LIGHT, *(FULL if full else ())):
            run(str(folder / "bin" / "flatlab"), *words, cwd=folder)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "no message").strip().splitlines()
        return f"FAILED: {' '.join(map(str, error.cmd))}: {lines[-1] if lines else ''}"
    return ""


def run(*command: str, cwd: Path | None = None) -> str:
    """What a command prints, outside of this tree; raises `CalledProcessError`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout
