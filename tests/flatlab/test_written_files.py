"""What is written reaches whoever waits for it: links stay links, pipes and devices are written into, none replaced."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flatlab.cli.pictures import picture_path
from flatlab.files import WriteError, atomic_write, require_writable, write_text
from tests.command_line import SECONDS, environment, program


def received(pipe: Path, write: Callable[[], object]) -> bytes:
    """What a reader of the pipe gets while `write` is done."""
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write()
    reader.join(30)
    assert found, "the reader still waits"
    return found[0]


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "p")
    (link := tmp_path / "l").symlink_to("p")
    for path in (pipe, link):
        require_writable(path)  # before anybody reads: it must not wait
        assert received(pipe, lambda path=path: write_text(path, "all of it")) == b"all of it"  # type: ignore[misc]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l", "p"]


def test_tensors_go_through_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "p")

    def write() -> None:
        with atomic_write(pipe) as file:
            torch.save(torch.arange(100_000), file)

    (tmp_path / "t.pt").write_bytes(received(pipe, write))
    assert torch.equal(torch.load(tmp_path / "t.pt", weights_only=True), torch.arange(100_000))


def test_a_reader_that_leaves_is_told_of_and_the_pipe_stays(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "p")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def write() -> None:
        with atomic_write(pipe) as file:
            os.close(reader)
            file.write(b"something")

    with pytest.raises(WriteError, match=r"p cannot be written \(Broken pipe\)"):
        write()
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


def test_a_device_is_written_into(tmp_path: Path) -> None:
    screen, terminal = os.openpty()  # a device of our own
    (tmp_path / "terminal").symlink_to(os.ttyname(terminal))
    for path in (Path(os.ttyname(terminal)), tmp_path / "terminal"):
        require_writable(path)
        write_text(path, "something")
        assert os.read(screen, 100) == b"something"
        assert path.is_char_device()
    assert (tmp_path / "terminal").is_symlink()
    os.close(screen)
    os.close(terminal)


@pytest.mark.parametrize("before", ["old", None])
def test_a_link_stays_and_what_it_points_to_is_replaced(before: str | None, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target = tmp_path / "deep" / "t.json"
    if before is not None:
        target.write_text(before)
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("deep/t.json")
    require_writable(tmp_path / "one")
    write_text(tmp_path / "one", "new")
    assert target.read_text() == "new"
    assert (tmp_path / "one").is_symlink()
    assert (tmp_path / "two").is_symlink()
    assert [path.name for path in target.parent.iterdir()] == ["t.json"]


def test_what_can_never_be_a_file_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "around").symlink_to("around")
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "around", "symbolic links"), ("/dev/fd/987", "Bad")):
        with pytest.raises(WriteError, match=reason):
            require_writable(Path(path))
        with pytest.raises(WriteError, match=reason):
            write_text(Path(path), "text")
    assert (tmp_path / "around").is_symlink()


@pytest.mark.parametrize("path", ["stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_open_files_are_written_from_where_they_are(path: str, to: str, tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from flatlab.files import *\n"
        f"path = Path({path!r}); os.write(1, b'first '); require_writable(path); write_text(path, 'then')\n"
        "os.write(1, b' last')\n"
    )
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")  # as /dev/stdout is
    with (tmp_path / "out").open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE if to == "pipe" else file,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=environment(),
            timeout=SECONDS,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert (done.stdout if to == "pipe" else (tmp_path / "out").read_bytes()) == b"first then last"


@pytest.mark.long
def test_a_command_writes_to_the_reader_that_a_shell_starts(tmp_path: Path) -> None:
    line = '"$0" -m flatlab doctor --json >(cat > got) && wait $!; cat got'
    done = program("bash", "-c", line, sys.executable, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"versions": {' in done.stdout


def test_a_line_that_does_not_fit_leaves_nothing_of_itself(tmp_path: Path) -> None:
    """Not what a buffer still held as the file was closed, either."""
    (tmp_path / "a.txt").write_bytes(b"x" * 90 + b"\n")
    done = program(sys.executable, "-c", FULL, cwd=tmp_path)
    assert "cannot be written" in done.stdout, done.stderr
    assert (tmp_path / "a.txt").read_bytes() == b"x" * 90 + b"\n"


FULL = """
import resource
from pathlib import Path
from flatlab.files import appending, WriteError
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
try:
    with appending(Path("a.txt")) as file:
        file.write(b'{"round": 35, "loss": 1.23456}\\n')
except WriteError as error:
    print(error)
"""


def test_a_folder_of_the_pictures_name_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "figs").mkdir()
    for name in ("figs", "figs.png", "figs.csv"):
        require_writable(picture_path(tmp_path / name))
        assert picture_path(tmp_path / name).name == "figs.png"
