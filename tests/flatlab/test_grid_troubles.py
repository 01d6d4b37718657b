"""What goes wrong around a grid's cells: full disks, folders of others, workers elsewhere, a shared process."""

import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from joblib.externals.loky import get_reusable_executor

from flatlab.files import write_text
from flatlab.grid import reproduction
from flatlab.grid.carry import run_cells
from flatlab.grid.cell_progress import FAILURE, read_failure
from flatlab.grid.cells import CellWork
from flatlab.grid.plan import Cell
from flatlab.grid.reproduction import Where
from flatlab.runs.interruption import Terminated, ask_to_stop, forget_stop, stop_if_asked
from tests.flatlab.test_grid_running import GRID, cells_of


def test_a_full_disk_is_the_reason_and_no_death(tmp_path: Path) -> None:
    def work(cell: Cell, folder: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        try:
            write_text(folder / "final.txt", "weights")
        finally:
            if cell.config.man:  # room again, which somebody made meanwhile
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    outcomes = {cell.name: failure for cell, failure in run_cells(cells_of(), tmp_path, work, jobs=2)}
    get_reusable_executor().shutdown(wait=True)  # one of its processes can write nothing
    assert all("final.txt cannot be written (File too large)" in failure for failure in outcomes.values()), outcomes
    assert not (tmp_path / "fedavg-s0" / FAILURE).exists()
    assert read_failure(tmp_path / "fedavg-man-s0") == outcomes["fedavg-man-s0"]


def test_a_failed_cell_that_this_user_cannot_write_stops_no_other(tmp_path: Path) -> None:
    def work(cell: Cell, folder: Path) -> None:
        (folder / "did").touch()

    (tmp_path / "fedavg-s0" / ".lock").mkdir(parents=True)  # which cannot be opened
    (tmp_path / "fedavg-s0" / FAILURE).write_text("of another user\n")
    outcomes = {cell.name: failure for cell, failure in run_cells(cells_of(), tmp_path, work, jobs=1)}
    assert "cannot be written" in outcomes["fedavg-s0"]
    assert outcomes["fedavg-man-s0"] == ""


def test_a_cluster_s_workers_get_the_folder_wherever_they_are_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(GRID.format(seeds="0", rounds=1))
    where = Where(out=Path("results"), jobs=1, data_root=Path("data"))
    (tmp_path / "data").mkdir()
    seen: list[tuple[Path, CellWork]] = []

    def look(todo: object, results: Path, work: CellWork, **more: object) -> Iterator[tuple[Cell, str]]:
        seen.append((results, work))
        return iter(())

    monkeypatch.setattr(reproduction, "run_cells", look)
    asked = reproduction.read_reproduction("small.toml", where)
    list(asked.run(asked.chosen))
    ((results, work),) = seen
    assert results == tmp_path / "results"
    assert work.data_root == tmp_path / "data"


def test_a_request_to_stop_is_of_one_thread_alone() -> None:
    ended = threading.Event()

    def another_cell() -> None:
        stop_if_asked()  # nobody asked it
        forget_stop()
        ended.set()

    ask_to_stop(threading.get_ident())
    try:
        threading.Thread(target=another_cell).start()
        assert ended.wait(10)
        with pytest.raises(Terminated):
            stop_if_asked()
    finally:
        forget_stop()
    stop_if_asked()
