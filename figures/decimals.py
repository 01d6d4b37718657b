"""How many decimals a number is shown with: what is not 0 must not read as 0, nor an interval as a point."""

import math

ROUNDING = 1e-9
"""Of a number's size: what is less beside it is the order of a sum, and needs no decimals."""


def three_digits(number: float) -> int:
    """Decimals that leave three significant digits."""
    return max(0, 2 + _first_digit(number))


def readable(part: float, number: float, fewest: int) -> int:
    """Decimals, at least `fewest`, to the first digit of `part`, where beside `number` it is more than rounding."""
    return max(fewest, _first_digit(part)) if abs(part) > ROUNDING * abs(number) else fewest


def interval_places(mean: float, low: float, high: float, fewest: int, none: float = 0.0) -> int:
    """Decimals, at least `fewest`, that show how far an interval reaches, and its mean from what would be `none`.

    Of a mean that is not a tenth of the interval from there they show no more than a tenth of the interval.
    """
    half = (high - low) / 2
    return readable(max(min(abs(mean - none), half), half / 10), max(abs(low), abs(high)), fewest)


def effect_shown(effect: float, low: float, high: float, *, ratio: bool) -> tuple[str, ...]:
    """An effect and the ends of its interval: a ratio, or a difference of shares in points."""
    if ratio:
        return tuple(factor_shown(end, interval_places(effect, low, high, 2, none=1)) for end in (effect, low, high))
    points = [100 * end for end in (effect, low, high)]
    places = interval_places(points[0], points[1], points[2], 1)
    return tuple(f"{end:+.{places}f}" for end in points)


def factor_shown(ratio: float, places: int = 2) -> str:
    """A ratio to so many decimals; with an exponent where most of them would be zeros, without decimals from 1000."""
    if 1000 <= abs(ratio) < 1e6:
        return f"{ratio:.0f}"
    if ratio and not 0.005 <= abs(ratio) < 1000:
        return f"{ratio:.{2 if abs(ratio) > 1 else max(0, places - _first_digit(ratio))}e}"
    return f"{ratio:.{places}f}"


def _first_digit(number: float) -> int:
    """Decimals to the first digit that is not 0, negative from 10 on; 0 for what has none."""
    return -math.floor(math.log10(abs(number))) if number and math.isfinite(number) else 0
