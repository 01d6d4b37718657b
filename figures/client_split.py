"""How a training set is divided: each client's classes, size, and distance from the whole."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from figures.drawing import COLUMN, Drawing, print_style


def draw_client_split(
    counts: NDArray[np.int64],
    total_variation: NDArray[np.float64],
    jensen_shannon: NDArray[np.float64],
    title: str,
    provenance: Mapping[str, str],
) -> Drawing:
    """Three panels over the clients: shares of classes, sizes, and distances of class distributions.

    `counts` is (clients, classes), the distances are (clients,), from 0 to 1; `title` is plain text.

    >>> counts, distances = np.array([[3, 0], [0, 5]]), np.array([0.625, 0.375])
    >>> drawing = draw_client_split(counts, distances, distances, "two clients, two classes", {})
    >>> [row["samples"] for row in drawing.rows]
    [3, 5]
    """
    sizes = counts.sum(axis=1)
    clients = np.arange(len(counts))
    edges = np.arange(len(counts) + 1) - 0.5
    with print_style():
        figure = Figure(figsize=(COLUMN, 3.6), layout="constrained")
        classes, size, distance = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
        image = classes.imshow(100 * (counts / sizes[:, None]).T, cmap="Blues", vmin=0, aspect="auto", origin="lower")
        classes.set(ylabel="class", title=title)
        classes.grid(visible=False)
        classes.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, ax=classes, label="share, %")
        size.stairs(sizes, edges, fill=True)
        size.set(ylabel="samples", ylim=(0, None))
        distance.stairs(total_variation, edges, label="total variation")
        distance.stairs(jensen_shannon, edges, label="Jensen-Shannon, bits")
        distance.set(ylabel="distance", ylim=(0, 1), xlabel="client")
        distance.xaxis.set_major_locator(MaxNLocator(integer=True))
        distance.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
        rows: list[dict[str, Any]] = [
            {
                "client": client,
                "samples": int(sizes[client]),
                "total_variation": total_variation[client],
                "jensen_shannon": jensen_shannon[client],
                **{f"class_{label}": int(count) for label, count in enumerate(counts[client])},
            }
            for client in clients
        ]
    return Drawing(figure, rows, provenance)
