"""Numbers as the cells of a table show them, and as its CSV holds them."""

from collections.abc import Callable
from typing import Any

from figures.decimals import interval_places, readable
from figures.statistics import Difference, Sample


def sample_shown(mean: Sample | None, fewest: Callable[[float], int], seeds: int, mark: str = "") -> str:
    """Mean ± deviation; in brackets of how many, where that is fewer than `seeds`, and how many are not finite; a mark.

    `fewest` are the least decimals of a number of that size.
    """
    if mean is None:
        return ""
    if mean.count == 0:
        return f"n/a ({mean.left_out} not finite)"
    places = readable(mean.deviation or 0.0, mean.mean, fewest(mean.mean))
    spread = "" if mean.deviation is None else f" ± {mean.deviation:.{places}f}"
    without = f"; {mean.left_out} not finite" if mean.left_out else ""
    count = f" ({mean.count}{without})" if mean.count < seeds else ""
    return marked(f"{mean.mean:.{places}f}{spread}{count}", mark)


def marked(text: str, mark: str) -> str:
    """A cell with the mark of what did not converge, if it has one."""
    return f"{text} {mark}" if mark else text


def difference_shown(gain: Difference | None, fewest: Callable[[float], int]) -> str:
    """The difference with its interval, where it has one."""
    if gain is None:
        return ""
    if gain.low is None or gain.high is None:
        return _signed(gain.mean, readable(gain.mean, gain.mean, fewest(gain.mean)))
    larger = max(abs(gain.mean), (gain.high - gain.low) / 2)
    places = interval_places(gain.mean, gain.low, gain.high, fewest(larger))
    return f"{_signed(gain.mean, places)} [{_signed(gain.low, places)}, {_signed(gain.high, places)}]"


def printed_difference(without: str, with_: str) -> str:
    """The difference of two printed numbers, to the decimals that they are printed with."""
    if not (without and with_):
        return ""
    places = max(len(number.partition(".")[2]) for number in (without, with_))
    return _signed(float(with_) - float(without), places)


def _signed(number: float, places: int) -> str:
    return f"{number:+.{places}f}".replace("-", "−")


def sample_numbers(side: str, mean: Sample | None) -> dict[str, Any]:
    """A sample in full precision, its names beginning with `side`; what does not exist is empty."""
    if mean is None:
        return {f"{side}_mean": "", f"{side}_deviation": "", f"{side}_seeds": 0, f"{side}_not_finite": 0}
    deviation = "" if mean.deviation is None else mean.deviation
    return {
        f"{side}_mean": mean.mean if mean.count else "",
        f"{side}_deviation": deviation,
        f"{side}_seeds": mean.count,
        f"{side}_not_finite": mean.left_out,
    }
