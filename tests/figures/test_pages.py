"""What tables and figures leave in a folder of results, and what they take away from it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from figures.drawing import DRAWING_ENDINGS
from figures.formats import TABLE_ENDINGS
from figures.gallery import FIGURES
from figures.tables import METHOD_TABLES, TABLES
from flatlab.grid import pages
from flatlab.grid.pages import make_pages

PLACES = {"tables": ((*TABLES, *METHOD_TABLES), TABLE_ENDINGS), "figures": (tuple(FIGURES), DRAWING_ENDINGS)}


def files(results: Path) -> set[str]:
    """All of what may be made, that is there."""
    return {
        path.relative_to(results).as_posix()
        for place, (names, endings) in PLACES.items()
        for name in names
        for ending in endings
        if (path := results / place / f"{name}.{ending}").exists()
    }


def without_target(results: Path) -> None:
    grid = results / "grid.toml"
    grid.write_text(grid.read_text().replace("target_accuracy = 0.5\n", ""))


def of_other_samples(results: Path) -> None:
    path = results / "fedavg-man-dirichlet-0.3-s0" / "final.trace.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"data": {**content["data"], "samples": 60}}))


def without_surfaces(results: Path) -> None:
    for path in results.glob("*/final.surface.json"):
        path.unlink()


@pytest.mark.parametrize(
    ("command", "change", "skipped"),
    [
        ("figures", without_target, {"tables/rounds"}),
        ("report", of_other_samples, {"tables/trace", "figures/curvature", "figures/zeta"}),
        ("figures", without_surfaces, {"figures/surface"}),
    ],
)
def test_what_is_skipped_is_no_longer_there(
    command: str, change: Callable[[Path], None], skipped: set[str], results: Path, flatlab: Callable[..., int]
) -> None:
    assert flatlab(command, str(results)) == 0
    before = files(results)
    others = [results / place / name for place in PLACES for name in ("rounds.txt", "surface.svg", "trace.md.bak")]
    for other in others:
        other.write_text("not ours")
    change(results)
    assert flatlab(command, str(results)) == 0
    gone = before - files(results)
    assert gone == {name for name in before if name.partition(".")[0] in skipped}
    assert len(gone) == 3 * len(skipped)
    assert all(other.read_text() == "not ours" for other in others)


def test_every_table_and_figure_is_taken_away_once_nothing_of_it_is_left(results: Path) -> None:
    for place, (names, endings) in PLACES.items():
        (results / place).mkdir()
        for name in names:
            for ending in endings:
                (results / place / f"{name}.{ending}").write_text("old")
    made = make_pages(results)
    left = {path.partition(".")[0] for path in files(results)}
    assert left == {f"tables/{table.name}" for table in made.tables} | {f"figures/{name}" for name in made.drawn}
    assert not left & {f"tables/{name}" for name in METHOD_TABLES}  # of two algorithms, not even tried
    assert all((results / path).read_bytes() != b"old" for path in files(results))


def test_a_report_elsewhere_takes_nothing_away(results: Path) -> None:
    (results / "tables").mkdir()
    old = results / "tables" / "ranks.md"
    old.write_text("old")
    make_pages(results, keep=False)
    assert old.read_text() == "old"


def test_results_that_changed_while_another_process_was_writing_are_read_again(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = pages._alone

    @contextmanager
    def waited(folder: Path) -> Iterator[None]:
        without_target(folder)
        with alone(folder):
            yield

    monkeypatch.setattr(pages, "_alone", waited)
    assert "table rounds" in make_pages(results).skipped
