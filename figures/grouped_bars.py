"""Bars side by side: a group per layer, a colour per subject."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from figures.drawing import colours

MOST_LABELLED = 14
"""Bars in a panel up to which each carries its number."""

DECADES = 100
"""Ratio of the highest to the lowest bar from which the axis is logarithmic."""

MOST_LEVEL = 6
"""Groups in a panel up to which their names lie level."""


def draw_groups(
    axes: Axes,
    names: Sequence[str],
    heights: Sequence[Sequence[float]],
    labels: Sequence[str],
    errors: Sequence[Sequence[float]] | None = None,
    marks: Sequence[Sequence[str]] | None = None,
) -> None:
    """Draw `heights` (subjects, groups), with whiskers where there are `errors`.

    On bars that are few stand numbers, and on all of them the `marks` of what did not converge.
    """
    place, width = np.arange(len(names)), 0.8 / len(heights)
    for side, (height, colour, label) in enumerate(zip(heights, colours(len(heights)), labels, strict=True)):
        yerr = None if errors is None else errors[side]
        shift = width * (side - (len(heights) - 1) / 2)
        bars = axes.bar(place + shift, height, 0.95 * width, color=colour, label=label, yerr=yerr, error_kw={"lw": 0.7})
        numbered = len(names) * len(heights) <= MOST_LABELLED
        texts = [_short(value) if numbered and not np.isnan(value) else "" for value in height]
        own = [" ".join(filter(None, pair)) for pair in zip(texts, marks[side], strict=True)] if marks else texts
        if any(own):
            axes.bar_label(bars, own, fontsize=6, padding=1, rotation=0 if len(heights) == 1 else 90)
    positive = [value for height in heights for value in height if value > 0]
    if positive and max(positive) > DECADES * min(positive) and all(not value <= 0 for row in heights for value in row):
        axes.set_yscale("log")  # on a linear axis the lowest would not be seen
        axes.set_ylim(min(positive) / 2, 4 * max(positive))
    level = len(names) <= MOST_LEVEL
    axes.set_xticks(place, names, rotation=0 if level else 40, ha="center" if level else "right")
    axes.margins(y=0.15 if len(heights) == 1 else 0.25)
    spare = max(0.0, 2 - len(names)) / 2  # a single group must not fill the panel
    axes.set_xlim(-0.55 - spare, len(names) - 0.45 + spare)
    axes.grid(visible=False, axis="x")


def _short(number: float) -> str:
    """Three digits, thousands as k."""
    return f"{number / 1000:.3g}k" if abs(number) >= 1000 else f"{number:.3g}"
