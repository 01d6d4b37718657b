"""Which classes each client holds."""

from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from figures.drawing import COLUMN, Drawing, new_figure, print_style
from figures.errors import MissingResultsError
from figures.labels import partition_label
from figures.results import Results


def draw_client_labels(results: Results) -> Drawing:
    """One panel per partition: each class's share of each client's samples; clients are columns, classes rows."""
    runs = {run.row: run for run in results.usual if "split" in run.measured}
    if not runs:
        raise MissingResultsError("no run has its final.split.json")
    rows: list[dict[str, Any]] = []
    with print_style():
        figure, panels = new_figure(COLUMN, 0.4 + 1.5 * len(runs), len(runs), sharex=True)
        shares = {name: _shares(run.measured["split"]["counts"]) for name, run in runs.items()}
        highest = max(share.max() for share in shares.values())
        for axes, (partition, share) in zip(panels[:, 0], shares.items(), strict=True):
            image = axes.imshow(100 * share.T, cmap="Blues", vmin=0, vmax=100 * highest, aspect="auto", origin="lower")
            axes.set(ylabel="class", title=partition_label(partition))
            axes.grid(visible=False)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(integer=True))
            counts = runs[partition].measured["split"]["counts"]
            rows += [
                {"partition": partition, "client": client, "class": label, "samples": count}
                for client, held in enumerate(counts)
                for label, count in enumerate(held)
            ]
        panels[-1, 0].set_xlabel("client")
        figure.colorbar(image, ax=panels[:, 0], label="share of the client's samples, %", shrink=0.9)
    return Drawing(figure, rows, results.provenance(runs.values()))


def _shares(counts: list[list[int]]) -> NDArray[np.float64]:
    """(clients, classes), every row the shares of one client's samples."""
    held = np.array(counts, dtype=np.float64)
    shares: NDArray[np.float64] = held / held.sum(axis=1, keepdims=True)
    return shares
