"""Decimals in tables: what is not 0 does not read as 0, nor an interval as a point."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from figures.decimals import effect_shown, factor_shown, interval_places, three_digits
from figures.man_table import man_table
from figures.method_tables import ranks_table
from figures.results import Result, Results
from figures.shown import difference_shown, sample_shown
from figures.statistics import Difference, sample
from figures.tables import eigenvalue_table
from flatlab.cli.side_by_side import Cell, ratio
from flatlab.federated.config import make_config

METHODS = ("fedavg", "fedprox", "scaffold", "fedsam")


def runs(algorithm: str, without: list[float], under: list[float]) -> list[Result]:
    """Of one method, with these top eigenvalues by seed."""
    made = []
    for man, tops in ((False, without), (True, under)):
        for seed, top in enumerate(tops):
            config = make_config({"algorithm": algorithm, "man": man, "seed": seed, "rounds": 1})
            eigs = {"settings": {}, "data": {"samples": 9}, "global": {"eigenvalues": [{"value": top}]}}
            records = ({"round": 1, "test_accuracy": 0.9},)
            name = Path(f"{algorithm}{man}{seed}")
            made.append(Result(name, config, "iid", "iid", records, {"eigs": eigs}, (), True, ""))
    return made


@pytest.mark.parametrize(
    ("without", "under", "shown"),
    [
        ([150, 151, 152], [0.42, 0.43, 0.44], ("151 ± 1", "0.430 ± 0.010", "−151 [−153, −148]")),
        ([150, 160, 170], [150.30, 160.31, 170.32], ("160 ± 10", "160 ± 10", "+0.310 [+0.285, +0.335]")),
        (
            [150, 150.0004, 150.0008],
            [150, 150, 150],
            ("150.0004 ± 0.0004", "150 ± 0", "−0.000400 [−0.001394, +0.000594]"),
        ),
        ([50], [50.0001], ("50.0", "50.0", "+0.000100")),
    ],
)
def test_every_cell_of_a_comparison_has_its_own_decimals(
    without: list[float], under: list[float], shown: tuple[str, ...]
) -> None:
    assert eigenvalue_table(Results(Path(), None, tuple(runs("fedavg", without, under)))).rows[0][2:5] == shown


def test_a_change_and_a_least_difference_near_none_can_be_read() -> None:
    made = []
    for at, algorithm in enumerate(METHODS):
        tops = [10.0 + at, 10.001 + at, 10.0025 + at]
        factors = (1.002, 1.0021, 1.002)
        made += runs(algorithm, tops, [top * factor for top, factor in zip(tops, factors, strict=True)])
    results = Results(Path(), None, tuple(made))
    cell = man_table(results).rows[0][-1]
    assert cell.startswith("×1.002")
    low, high = cell.partition("[")[2].partition("]")[0].split(", ")
    assert 1 < float(low) < 1.00203 < float(high) < 1.003
    note = next(note for note in ranks_table(results).notes if "a factor of" in note)
    assert 1 < float(note.partition("a factor of ")[2].split(".\n")[0].rstrip(".;")) < 1.01


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_an_interval_is_no_point_and_a_difference_no_zero(mean: float, half: float) -> None:
    shown = difference_shown(Difference(mean, mean - half, mean + half, 3), three_digits).replace("−", "-")
    value, _, ends = shown.partition(" [")
    low, high = map(float, ends.rstrip("]").split(", "))
    assert low < high
    assert float(value) != 0 or abs(mean) < half / 10
    assert high - low == pytest.approx(2 * half, rel=1.01)


def test_rounding_needs_no_decimals() -> None:
    assert sample_shown(sample([0.1 + 0.2, 0.3, 0.3]), three_digits, 3) == "0.300 ± 0.000"
    assert interval_places(20, 20 - 1e-14, 20 + 1e-14, 1) == 1


@pytest.mark.parametrize(
    ("number", "shown"), [(0.5, "0.50"), (0.003, "3e-03"), (0.0, "0.00"), (1234.5, "1234"), (2e7, "2.00e+07")]
)
def test_a_factor_is_not_shown_as_0(number: float, shown: str) -> None:
    assert factor_shown(number) == shown
    assert ratio(Cell("", number), Cell("", 1.0)) == shown


def test_an_effect_shows_its_interval() -> None:
    assert effect_shown(0.0031, 0.0030, 0.0032, ratio=True) == ("3.1e-03", "3.0e-03", "3.2e-03")
    assert effect_shown(0.67, 0.37, 1.21, ratio=True) == ("0.67", "0.37", "1.21")
    assert effect_shown(2e-4, 1e-4, 3e-4, ratio=False) == ("+0.02", "+0.01", "+0.03")
    assert effect_shown(0.02, -0.01, 0.05, ratio=False) == ("+2.0", "-1.0", "+5.0")
