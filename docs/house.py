"""`python docs/house.py`: draw the house, docs/figures/house.png, from what the files import.

A box is a room: a package, or all the modules that lie loose in `flatlab/`. An arrow goes from who imports to what is
imported; its width grows with the number of imports. A room stands above all that it imports, or beside
those that import it in turn.
"""

import sys
from collections import Counter
from pathlib import Path

import grimp
import matplotlib
import networkx

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parent.parent
PACKAGES = ("flatlab", "analysis", "figures")
LOOSE = "flatlab"  # modules directly in the package: errors, files, ...

Arrows = dict[tuple[str, str], int]


def room(module: str) -> str:
    """The room of a module, as a path: `flatlab.runs.folder` is in `flatlab/runs`."""
    package, *inner = module.split(".")
    is_room = package == "flatlab" and inner and (ROOT / package / inner[0]).is_dir()
    return f"{package}/{inner[0]}" if is_room else package


def arrows() -> Arrows:
    """How many imports go from one room to another."""
    sys.path.insert(0, str(ROOT))  # before this folder, whose figures/ holds pictures
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    doors = {"flatlab", "flatlab.__main__"}  # through which one comes in, from the top
    pairs = ((m, n) for m in graph.modules - doors for n in graph.find_modules_directly_imported_by(m) - doors)
    return dict(Counter((room(m), room(n)) for m, n in pairs if room(m) != room(n)))


def floors(drawn: Arrows) -> dict[str, int]:
    """The floor of each room: above all that it imports, and beside those that import it in turn."""
    rings = networkx.condensation(networkx.DiGraph(list(drawn)))
    floor: dict[int, int] = {}
    for ring in reversed(list(networkx.topological_sort(rings))):
        floor[ring] = 1 + max((floor[below] for below in rings.successors(ring)), default=-1)
    return {name: floor[ring] for ring in rings for name in rings.nodes[ring]["members"]}


def lines(name: str) -> tuple[int, int]:
    """The files and lines of a room."""
    folder = ROOT / name
    files = list(folder.glob("*.py") if name == LOOSE else folder.rglob("*.py"))
    return len(files), sum(len(file.read_text().splitlines()) for file in files)


def draw(path: Path) -> None:
    """Draw the picture."""
    drawn = arrows()
    floor = floors(drawn)
    rows: dict[int, list[str]] = {}
    for name in sorted(floor):
        rows.setdefault(floor[name], []).append(name)
    place = {
        name: ((i + 1) / (len(row) + 1) * 10 + (0.9 if level % 2 else -0.9) * (len(row) == 1), level * 1.6)
        for level, row in rows.items()
        for i, name in enumerate(row)
    }
    figure, axes = plt.subplots(figsize=(9, 1.35 * (max(floor.values()) + 1)))
    for (above, under), count in drawn.items():
        _arrow(axes, place[above], place[under], count)
    for name, (x, y) in place.items():
        _box(axes, name, x, y)
    axes.set_xlim(0, 10)
    axes.set_ylim(-0.8, max(floor.values()) * 1.6 + 0.8)
    axes.axis("off")
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def _box(axes: Axes, name: str, x: float, y: float) -> None:
    own = name.split("/")[0]
    colour = {"analysis": "#dbe9f6", "figures": "#fde7d3"}.get(own, "#f2f2f2")
    box = FancyBboxPatch((x - 0.95, y - 0.35), 1.9, 0.7, boxstyle="round,pad=0.05", fc=colour, ec="#444444", zorder=3)
    axes.add_patch(box)
    files, total = lines(name)
    axes.text(
        x,
        y + 0.1,
        f"{name}/*.py" if name == LOOSE else f"{name}/",
        ha="center",
        va="center",
        weight="bold",
        size=9,
        zorder=4,
    )
    axes.text(x, y - 0.17, f"{files} files, {total:,} lines", ha="center", va="center", size=7, zorder=4)


def _arrow(axes: Axes, above: tuple[float, float], under: tuple[float, float], count: int) -> None:
    bend = (
        0.3 if above[1] == under[1] else 0.0 if above[1] - under[1] < 2 else 0.12 * (1 if above[0] >= under[0] else -1)
    )
    axes.add_patch(
        FancyArrowPatch(
            (above[0], above[1] - 0.4),
            (under[0], under[1] + 0.4),
            connectionstyle=f"arc3,rad={bend}",
            arrowstyle="-|>",
            mutation_scale=9,
            lw=0.5 + count**0.5 / 4,
            color="#7a7a7a",
            zorder=2,
        )
    )


if __name__ == "__main__":
    draw(ROOT / "docs" / "figures" / "house.png")
