"""Top eigenvalue and trace of the Hessian at the end of training, without and with MAN."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from figures.drawing import COLUMN, WITH_MAN, WITHOUT_MAN, Drawing, paper_style
from figures.errors import MissingResultsError
from figures.labels import algorithm_label, man_label, partition_label
from figures.results import Results, require_alike
from figures.statistics import Sample, sample

QUANTITIES = {"top eigenvalue": "top_eigenvalue", "trace": "trace"}


def draw_curvature_bars(results: Results) -> Drawing:
    """Eigenvalue left, trace right, a row per partition; bars are means over seeds, whiskers standard deviations."""
    runs = [run for run in results.usual if run.top_eigenvalue is not None or run.trace is not None]
    if not runs:
        raise MissingResultsError("no run has its final.eigs.json or final.trace.json")
    require_alike(runs, "eigs")
    require_alike(runs, "trace")
    partitions = [name for name in results.rows if any(run.row == name for run in runs)]
    algorithms = [name for name in results.algorithms if any(run.config.algorithm == name for run in runs)]
    rows: list[dict[str, Any]] = []
    with paper_style():
        figure, grid = plt.subplots(
            len(partitions),
            2,
            figsize=(2 * COLUMN if len(algorithms) > 3 else 1.5 * COLUMN, 0.5 + 1.6 * len(partitions)),
            squeeze=False,
            sharex=True,
            sharey="col",
            constrained_layout=True,
        )
        for line, partition in zip(grid, partitions, strict=True):
            for axes, (title, name) in zip(line, QUANTITIES.items(), strict=True):
                for side, man in enumerate((False, True)):
                    found = [_over_seeds(results, algorithm, partition, man, name) for algorithm in algorithms]
                    place = np.arange(len(algorithms)) + 0.4 * (side - 0.5)
                    heights = [s.mean if s else np.nan for s in found]
                    errors = [(s.deviation or 0.0) if s else 0.0 for s in found]
                    colour, label = (WITHOUT_MAN, WITH_MAN)[side], man_label(man, results.zetas)
                    axes.bar(place, heights, 0.38, yerr=errors, color=colour, label=label, error_kw={"lw": 0.8})
                    key = {"partition": partition, "quantity": title, "man": man}
                    rows += [
                        {**key, "algorithm": a, "mean": s.mean, "deviation": s.deviation, "seeds": s.count}
                        for a, s in zip(algorithms, found, strict=True)
                        if s
                    ]
                axes.set_xticks(range(len(algorithms)), [algorithm_label(a) for a in algorithms])
                axes.set(title=title if partition == partitions[0] else "")
                axes.grid(visible=False, axis="x")
            line[0].set_ylabel(partition_label(partition))
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        plt.close(figure)
    return Drawing(figure, rows, results.provenance(runs))


def _over_seeds(results: Results, algorithm: str, partition: str, man: bool, name: str) -> Sample | None:
    values = [getattr(run, name) for run in results.select(algorithm, partition, man)]
    return sample([value for value in values if value is not None])
