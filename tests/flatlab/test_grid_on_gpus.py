"""One cell per GPU, on machines without one: what each process that cells are sent to is given, before torch starts."""

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from flatlab.errors import UsageError
from flatlab.grid.carry import run_cells
from flatlab.grid.cell_progress import DIED
from flatlab.grid.plan import Cell
from flatlab.grid.reproduction import Where, read_reproduction
from flatlab.grid.workers import dealt, visible_gpus
from tests.flatlab.test_grid_running import cells_of


@pytest.mark.parametrize(
    ("said", "count", "gpus"),
    [
        (None, 0, ()),
        (None, 3, ("0", "1", "2")),
        ("2,3", 2, ("2", "3")),
        (" 5 , GPU-8a7b ", 2, ("5", "GPU-8a7b")),
        ("MIG-1234", 1, ("MIG-1234",)),
        ("0,-1,1", 1, ("0",)),  # torch sees those before the first that is none
        ("", 0, ()),
        ("-1", 0, ()),
        ("7,9", 1, ("7",)),  # there is no ninth
    ],
)
def test_gpus_are_named_as_this_process_was_given_them(said: str | None, count: int, gpus: tuple[str, ...]) -> None:
    assert visible_gpus({} if said is None else {"CUDA_VISIBLE_DEVICES": said}, count) == gpus


def test_jobs_are_dealt_round() -> None:
    assert dealt(("4", "6"), 5) == ("4", "6", "4", "6", "4")
    assert dealt((), 5) == ()


def given(cell: Cell, folder: Path) -> None:
    """A cell that notes what its process was given as it started, and as it is now."""
    started = dict(entry.split("=", 1) for entry in Path("/proc/self/environ").read_text().split("\0") if "=" in entry)
    words = (started.get("CUDA_VISIBLE_DEVICES", ""), os.environ["CUDA_VISIBLE_DEVICES"], str(os.getpid()))
    (folder / "given").write_text("\n".join(words))
    time.sleep(0.3)


@pytest.mark.long
def test_every_process_sees_one_gpu_alone_and_all_are_used(tmp_path: Path) -> None:
    """Two GPUs, and three jobs: one GPU has two."""
    cells = cells_of(seeds="0, 1, 2, 3")
    outcomes = run_cells(cells, tmp_path, given, jobs=3, gpus=dealt(("3", "GPU-8a7b"), 3))
    assert {cell.name: failure for cell, failure in outcomes} == {cell.name: "" for cell in cells}
    notes = [(tmp_path / cell.name / "given").read_text().split("\n") for cell in cells]
    assert all(started == now for started, now, _ in notes)
    assert Counter(gpu for gpu, _ in {(gpu, process) for _, gpu, process in notes}) == {"3": 2, "GPU-8a7b": 1}


@pytest.mark.long
def test_a_process_on_a_gpu_that_dies_fails_its_cell_alone(tmp_path: Path) -> None:
    def work(cell: Cell, folder: Path) -> None:
        if cell.name == "fedavg-s0":
            os._exit(7)
        (folder / "did").touch()

    cells = cells_of(seeds="0, 1")
    outcomes = {cell.name: failure for cell, failure in run_cells(cells, tmp_path, work, jobs=2, gpus=("0", "1"))}
    assert outcomes == {"fedavg-s0": DIED, "fedavg-man-s0": "", "fedavg-s1": "", "fedavg-man-s1": ""}


@pytest.mark.long
def test_a_dask_cluster_has_one_worker_per_gpu(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    cells = cells_of(seeds="0, 1")
    outcomes = run_cells(cells, tmp_path, given_to_dask, jobs=2, backend="dask", gpus=("1", "4"))
    assert [failure for _, failure in outcomes] == [""] * len(cells)
    notes = [(tmp_path / cell.name / "given").read_text().split("\n") for cell in cells]
    assert {gpu for gpu, _ in notes} == {"1", "4"}
    assert len(set(map(tuple, notes))) == 2


def given_to_dask(cell: Cell, folder: Path) -> None:
    """Dask's nanny sets the environment as the process starts, before it takes work."""
    (folder / "given").write_text(f"{os.environ['CUDA_VISIBLE_DEVICES']}\n{os.getpid()}")
    time.sleep(0.3)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (Where(jobs=2, jobs_per_gpu=2), "give one of them"),
        (Where(jobs_per_gpu=2, device="cpu"), "needs a GPU"),
        (Where(jobs_per_gpu=2, backend="dask", scheduler="tcp://x:1"), "as many jobs as Dask workers"),
    ],
)
def test_what_cannot_be_is_refused(where: Where, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_reproduction("toy", where)


def test_a_cluster_decides_for_itself_what_its_machines_have() -> None:
    on_cluster = Where(backend="dask", scheduler="tcp://x:1", device="cuda")
    assert read_reproduction("toy", on_cluster).device == "cuda"
