"""The training loss around the final models without and with MAN, on the same directions and the same scale."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from figures.labels import algorithm_label, man_label
from figures.results import Results
from figures.saving import COLUMN, paper_style, plain_log_ticks, save_figure

LEVELS = 16


def draw_loss_surface(results: Results, path: Path) -> list[Path]:
    """Two contour maps of one logarithmic colour scale; the cross marks the model.

    Both use the same random directions, each filter of which has the norm of the model's own filter.
    """
    runs = results.pair(lambda run: run.measured.get("surface"), "final.surface.json")
    saved = [run.measured["surface"] for run in runs]
    losses = [np.array(surface["losses"]) for surface in saved]
    levels = np.geomspace(min(loss.min() for loss in losses), max(loss.max() for loss in losses), LEVELS)
    rows = [
        {"run": run.name, "a": a, "b": b, "loss": surface["losses"][i][j]}
        for run, surface in zip(runs, saved, strict=True)
        for i, a in enumerate(surface["a"])
        for j, b in enumerate(surface["b"])
    ]
    with paper_style():
        figure, panels = plt.subplots(
            1, 2, figsize=(2 * COLUMN, 2.9), sharex=True, sharey=True, constrained_layout=True
        )
        norm = LogNorm(levels[0], levels[-1])
        for axes, run, surface, loss in zip(panels, runs, saved, losses, strict=True):
            filled = axes.contourf(surface["a"], surface["b"], loss.T, levels, norm=norm, cmap="cividis")
            axes.contour(surface["a"], surface["b"], loss.T, levels, colors="white", linewidths=0.3)
            axes.plot(0, 0, "+", color="white", ms=6)
            axes.set(
                title=f"{algorithm_label(run.config.algorithm)}, {man_label(run.config.man, run.config.zeta)}",
                xlabel="first direction",
                aspect="equal",
                xticks=np.linspace(min(surface["a"]), max(surface["a"]), 5),
                yticks=np.linspace(min(surface["b"]), max(surface["b"]), 5),
            )
            axes.grid(visible=False)
        panels[0].set_ylabel("second direction")
        bar = figure.colorbar(filled, ax=panels, label="training loss")
        plain_log_ticks(bar.ax.yaxis)
        bar.ax.minorticks_off()
        written = save_figure(figure, path, rows, results.provenance(runs))
        plt.close(figure)
    return written
