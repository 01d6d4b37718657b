"""The loss on a line through trained models."""

from collections.abc import Sequence

import numpy as np

from figures.captions import Saved, origin, setting, subject_labels, subject_name
from figures.drawing import COLUMN, Drawing, colours, legend_entries, new_figure, print_style
from figures.loss_surface import loss_label


def draw_loss_lines(saved: Sequence[Saved]) -> Drawing:
    """Draw saved results of `flatlab surface --line`; along eigenvectors also the parabolas of their eigenvalues.

    >>> data = {"dataset": "digits", "split": "train", "samples": 500}
    >>> saved = {"checkpoint": "run/final.pt", "data": data, "versions": {"torch": "2.13.0"}}
    >>> draw_loss_lines([{**saved, "a": [0.0, 1.0], "losses": [[0.3], [0.4]]}]).rows[-1]
    {'subject': 'run/final.pt', 'a': 1.0, 'loss': 0.4}
    """
    rows = [
        {"subject": subject_name(one), "a": a, "loss": losses[0]}
        for one in saved
        for a, losses in zip(one["a"], one["losses"], strict=True)
    ]
    with print_style():
        figure, ((axes,),) = new_figure(COLUMN, 2.3)
        for one, colour, label in zip(saved, colours(len(saved)), subject_labels(saved), strict=True):
            a, losses = np.array(one["a"]), np.array(one["losses"], dtype=np.float64)[:, 0]  # NaN where one is null
            axes.plot(a, losses, color=colour, lw=1.2, label=label)
            if "eigenvalues" in one:
                axes.plot(a, one["loss"] + one["eigenvalues"][0]["value"] * a**2 / 2, ":", color=colour, lw=1)
        if any("eigenvalues" in one for one in saved):
            axes.plot([], [], ":", color="0.35", lw=1, label=r"$L(\theta) + \lambda a^2 / 2$")
        axes.set(
            xlabel=f"multiple of the {'top eigenvector' if 'eigenvalues' in saved[0] else 'random direction'}",
            ylabel=loss_label(saved[0]),
            title=setting(saved[0]),
        )
        if len(axes.get_lines()) > 1:
            axes.legend(*legend_entries(axes), frameon=True)
    return Drawing(figure, rows, origin(saved))
