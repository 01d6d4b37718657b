"""Density of the Hessian's eigenvalues, without and with MAN."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from figures.labels import man_label
from figures.results import Results
from figures.saving import COLUMN, WITH_MAN, WITHOUT_MAN, paper_style, save_figure


def draw_spectral_density(results: Results, path: Path) -> list[Path]:
    """Two runs that differ in MAN alone, on a logarithmic axis that ends where a single eigenvalue would stand."""
    runs = results.pair(lambda run: run.measured.get("density"), "final.density.json")
    rows, floor, highest = [], np.inf, 0.0
    with paper_style():
        figure, axes = plt.subplots(figsize=(COLUMN, 2.2), constrained_layout=True)
        for run, colour in zip(runs, (WITHOUT_MAN, WITH_MAN), strict=True):
            saved = run.measured["density"]
            grid, density = np.array(saved["grid"]), np.array(saved["density"])
            axes.plot(grid, density, color=colour, lw=1.2, label=man_label(run.config.man, run.config.zeta))
            single = 1 / (saved["size"] * saved["sigma"] * np.sqrt(2 * np.pi))
            floor, highest = min(floor, single / 10), max(highest, density.max())
            rows += [
                {"run": run.name, "eigenvalue": x, "density": y, "standard_error": e}
                for x, y, e in zip(saved["grid"], saved["density"], saved["standard_error"], strict=True)
            ]
        axes.set(yscale="log", xlabel="eigenvalue of the Hessian", ylabel="density")
        axes.set_ylim(floor, 3 * highest)
        axes.set_title(runs[0].setting)
        axes.legend(frameon=True)
        written = save_figure(figure, path, rows, results.provenance(runs))
        plt.close(figure)
    return written
