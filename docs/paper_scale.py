"""`python docs/paper_scale.py`: draw docs/figures/paper-scale.png and .csv from the rounds in checkpoints/paper.

Above the test accuracy of what a run reports, below the top eigenvalue of the server's model on 500 training images,
a column for each method, without and with MAN.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # before this folder, whose figures/ holds pictures

from figures.drawing import COLUMN, WITH_MAN, WITHOUT_MAN, new_figure, print_style  # noqa: E402
from figures.labels import algorithm_label  # noqa: E402

METHODS = ("fedavg", "fedsam", "feddyn", "fedspeed", "feddc")
EVERY = 50  # rounds; some runs were measured more often


def curves(cell: str) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """(round, test accuracy in %) and (round, top eigenvalue) of a cell."""
    lines = (ROOT / "checkpoints" / "paper" / f"{cell}.metrics.jsonl").read_text().splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    accuracy = [(r["round"], 100 * r["test_accuracy"]) for r in records if "test_accuracy" in r]
    tops = [(r["round"], r["curvature"]["global"]["value"]) for r in records if "curvature" in r]
    return accuracy, [(t, value) for t, value in tops if t % EVERY == 0]


def draw(path: Path) -> None:
    """Write the picture, and its numbers as CSV beside it."""
    rows: list[tuple[str, str, int, float]] = []
    with print_style():
        figure, grid = new_figure(2 * COLUMN, 3, 2, len(METHODS), sharex=True, sharey="row")
        for column, method in zip(grid.T, METHODS, strict=True):
            column[0].set_title(algorithm_label(method))
            column[1].set_xlabel("round")
            for man, colour, label in (("", WITHOUT_MAN, "without MAN"), ("-man", WITH_MAN, "with MAN")):
                for axes, name, points in zip(column, ("accuracy", "eigenvalue"), curves(method + man), strict=True):
                    axes.plot(*zip(*points, strict=True), color=colour, lw=1, label=label)
                    rows += [(method + man, name, t, value) for t, value in points]
        grid[0, 0].set(ylabel="test accuracy, %", ylim=(25, 57))
        grid[1, 0].set(ylabel="top eigenvalue", ylim=(0, 50))
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(path)
    with path.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([("cell", "what", "round", "value"), *rows])


if __name__ == "__main__":
    draw(ROOT / "docs" / "figures" / "paper-scale.png")
