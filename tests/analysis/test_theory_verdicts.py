"""From numbers to verdicts: constructed cases of each kind."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from analysis.problem import make_problem
from analysis.theory.dense import examine
from analysis.theory.study import CONTRASTS, LayerMeasures, Measures, Subject, conclude, correlations, measure
from analysis.theory.verdicts import Claim, Comparison, Point, compare, corrected, correlate, holm, verdict

LOWER, HIGHER = Claim("lambda", "lower"), Claim("accuracy", "higher", ratio=False)
NOISE = np.array([0.03, -0.02, 0.01, -0.04, 0.02])


def compared(claim: Claim, x: list[float], y: list[float]) -> Comparison:
    without = {seed: {claim.quantity: value} for seed, value in enumerate(y)}
    settings = {"zeta": {seed: {claim.quantity: value} for seed, value in enumerate(x)}}
    (comparison,) = corrected(compare([claim], without, settings))
    return comparison


@pytest.mark.parametrize(
    ("factors", "answer"),
    [
        (0.5 * np.exp(NOISE), "supported"),
        (2.0 * np.exp(NOISE), "contradicted"),
        (np.exp(10 * NOISE), "undecided"),  # the sign differs from seed to seed
        (np.ones(5), "undecided"),  # nothing changes
        (np.full(5, 0.9), "supported"),  # the same change in every pair
        (0.5 * np.exp(NOISE[:2]), "undecided"),  # too few pairs, whatever they show
    ],
)
def test_a_claim_about_a_ratio(factors: np.ndarray, answer: str) -> None:
    y = [4.0, 7.0, 5.0, 6.0, 4.5][: len(factors)]
    comparison = compared(LOWER, list(np.array(y) * factors), y)
    assert comparison.answer == answer
    assert comparison.effect == pytest.approx(np.exp(np.log(factors).mean()))
    assert comparison.pairs == len(factors)


@pytest.mark.parametrize(("gain", "answer"), [(0.2, "supported"), (-0.2, "contradicted"), (0.0, "undecided")])
def test_a_claim_about_a_difference(gain: float, answer: str) -> None:
    y = [0.6, 0.7, 0.5, 0.65, 0.55]
    comparison = compared(HIGHER, list(np.array(y) + gain + NOISE), y)
    assert comparison.answer == answer
    assert comparison.effect == pytest.approx(gain + NOISE.mean())


def test_interval_and_p_value_are_those_of_the_paired_t_test() -> None:
    y = np.array([4.0, 7.0, 5.0, 6.0, 4.5])
    x = y * 0.8 * np.exp(3 * NOISE)
    comparison = compared(LOWER, list(x), list(y))
    expected = stats.ttest_rel(np.log(x), np.log(y))
    interval = expected.confidence_interval(0.95)
    assert comparison.p == pytest.approx(expected.pvalue)
    assert (comparison.low, comparison.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))


def test_only_runs_with_a_partner_are_compared() -> None:
    without = {0: {"lambda": 2.0}, 1: {"lambda": 3.0}, 5: {"lambda": 1.0}}
    with_man = {1: {"lambda": 6.0}, 2: {"lambda": 1.0}, 5: {"lambda": 2.0}}
    (comparison,) = compare([LOWER], without, {"zeta": with_man})
    assert comparison.pairs == 2
    assert comparison.effect == pytest.approx(2.0)
    (alone,) = compare([LOWER], without, {"zeta": {9: {"lambda": 1.0}}})
    assert alone.pairs == 0
    assert math.isnan(alone.effect)
    assert alone.answer == "undecided"


def test_numbers_that_are_missing_are_left_out() -> None:
    assert compared(HIGHER, [0.9, math.nan, 0.8], [0.5, 0.5, 0.5]).pairs == 2
    assert compared(LOWER, [1.0, 0.0, 2.0], [2.0, 2.0, 2.0]).pairs == 2


def test_holm() -> None:
    """Example worked by hand: 0.01 x 4, then 0.02 x 3, 0.03 x 2, and the last no smaller than the one before."""
    assert holm([0.03, 0.01, 0.05, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []


@pytest.mark.long
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=20)
def test_holm_lies_between_no_correction_and_bonferroni(p: list[float]) -> None:
    for raw, corrected_ in zip(p, holm(p), strict=True):
        assert raw <= corrected_ <= min(1.0, len(p) * raw) + 1e-15


def test_the_number_of_comparisons_can_undo_a_support() -> None:
    y = [4.0, 7.0, 5.0, 6.0, 4.5]
    factors = np.exp(3 * (NOISE - 0.05))
    one = compared(LOWER, list(np.array(y) * factors), y)
    assert one.answer == "supported"
    many = corrected([one, *[replace(one, p=0.8)] * 30])
    assert many[0].answer == "undecided"


@pytest.mark.parametrize(
    ("effects", "answer"),
    [
        ((0.5, 0.5), "supported"),
        ((0.5, 1.0), "undecided"),
        ((0.5, 2.0), "contradicted"),
        ((1.0, 1.0), "undecided"),
        ((), "undecided"),
    ],
)
def test_a_claim_needs_every_coefficient_and_falls_by_one(effects: tuple[float, ...], answer: str) -> None:
    y = [4.0, 7.0, 5.0, 6.0, 4.5]
    spread = np.exp(NOISE)
    comparisons = [compared(LOWER, list(np.array(y) * effect * spread), y) for effect in effects]
    assert verdict(comparisons) == answer


def subject(zeta: float, seed: int, tops: tuple[float, float], accuracy: float = 0.9, **fields: Any) -> Subject:
    norms = 100 / (1 + 10 * zeta) * (1 + 0.1 * seed)
    layers = [LayerMeasures("fc1", tops[0], 0.0, 64.0, norms), LayerMeasures("fc2", tops[1], 0.0, norms, 10.0)]
    whole = sum(tops) * (1 + 0.01 * seed)
    measures = Measures(0.1, whole, 0.0, 3 * whole, 0.0, 5.0 + 0.1 * seed, 7.0, 0.2 - 0.01 * seed, layers)
    known: dict[str, Any] = {"zeta_logits": 0.0, "round": 10, "group": "digits"} | fields
    return Subject("final.pt", zeta=zeta, seed=seed, accuracy=accuracy, measures=measures, **known)


def study(tops: Callable[[float, int], tuple[float, float]], **fields: Any) -> list[Subject]:
    return [subject(zeta, seed, tops(zeta, seed), **fields) for zeta in (0.0, 0.1, 0.5) for seed in range(5)]


def answers(subjects: list[Subject]) -> dict[str, str]:
    return {result.claim.quantity: result.answer for result in conclude(subjects)}


def test_a_study_in_which_man_does_what_is_claimed() -> None:
    found = answers(study(lambda zeta, seed: (4 / (1 + zeta) * (1 + 0.01 * seed), 2 / (1 + 3 * zeta))))
    assert found["λmax of the network"] == found["λmax of fc1"] == found["mean |a|² after fc1"] == "supported"
    assert found["relative flatness (λmax)"] == "undecided"


def test_a_study_in_which_the_curvature_moves_into_the_first_layer() -> None:
    found = answers(study(lambda zeta, seed: (4 * (1 + 3 * zeta) * (1 + 0.01 * seed), 2 / (1 + 3 * zeta))))
    assert found["λmax of fc1"] == found["λmax of the network"] == "contradicted"
    assert found["λmax of fc2"] == "supported"


def test_coefficients_that_are_printed_alike_are_compared_apart() -> None:
    runs = [
        subject(zeta, seed, (change, 1.0))
        for zeta, change in ((0.0, 4.0), (0.05, 2.0), (0.0500000001, 8.0))
        for seed in range(4)
    ]
    (found,) = (v for v in conclude(runs) if v.claim.quantity == "λmax of fc1")
    assert [comparison.effect for comparison in found.comparisons] == pytest.approx([0.5, 2.0])


def test_what_rests_on_a_number_that_did_not_converge_is_marked() -> None:
    runs = study(lambda zeta, seed: (4 / (1 + zeta), 2 / (1 + 3 * zeta)))
    marked = [
        replace(run, measures=replace(run.measures, doubts={"trace": "~", "λmax of fc1": "!"}))
        if run.zeta == 0.5 and run.seed == 1
        else run
        for run in runs
    ]
    marks = {v.claim.quantity: [comparison.doubt for comparison in v.comparisons] for v in conclude(marked)}
    assert marks["trace"] == ["", "~"]
    assert marks["λmax of fc1"] == ["", "!"]
    assert marks["λmax of fc2"] == ["", ""]


def test_a_study_without_effect() -> None:
    sign = {0: 1, 1: -1, 2: 1, 3: -1, 4: 0}
    found = answers(study(lambda zeta, seed: (4 * math.exp(zeta * sign[seed]), 2 * math.exp(zeta * sign[seed]))))
    assert found["λmax of the network"] == found["λmax of fc1"] == "undecided"


def test_accuracy_is_compared_by_difference() -> None:
    subjects = study(lambda zeta, seed: (4.0, 2.0))
    better = [replace(s, accuracy=0.9 + 0.02 * (s.zeta > 0) + 0.001 * s.seed * s.zeta) for s in subjects]
    worse = [replace(s, accuracy=1.8 - s.accuracy) for s in better]
    assert answers(better)["test accuracy"] == "supported"
    assert answers(worse)["test accuracy"] == "contradicted"
    assert answers(subjects)["test accuracy"] == "undecided"


def test_only_the_last_round_is_compared() -> None:
    last = study(lambda zeta, seed: (4 / (1 + zeta) * (1 + 0.01 * seed), 2.0))
    early = study(lambda zeta, seed: (4 * (1 + zeta), 2.0), round=5)
    assert answers(early + last) == answers(last)


def test_groups_are_never_mixed_but_corrected_together() -> None:
    lower = study(lambda zeta, seed: (4 / (1 + zeta) * (1 + 0.01 * seed), 2.0))
    higher = study(lambda zeta, seed: (4 * (1 + zeta) * (1 + 0.01 * seed), 2.0), group="other")
    found = {(r.group, r.claim.quantity): r for r in conclude(lower + higher)}
    assert found["digits", "λmax of fc1"].answer == "supported"
    assert found["other", "λmax of fc1"].answer == "contradicted"
    alone = {r.claim.quantity: r for r in conclude(lower)}
    together = found["digits", "mean |a|² after fc1"].comparisons[0]
    assert together.p == alone["mean |a|² after fc1"].comparisons[0].p
    assert found["digits", "λmax of the network"].comparisons[0].p_holm > (
        alone["λmax of the network"].comparisons[0].p_holm
    )


def test_every_contrast_has_verdicts_of_its_own() -> None:
    """MAN alone doubles the eigenvalue, the logits alone change nothing, both halve it: a quarter of MAN's."""
    tops = {(True, False): 8.0, (False, True): 4.0, (True, True): 2.0, (False, False): 4.0}
    subjects = [
        subject(zeta, seed, (tops[zeta > 0, logits > 0] * (1 + 0.01 * seed * zeta), 2.0), zeta_logits=logits)
        for zeta in (0.0, 0.1, 0.5)
        for logits in (0.0, 1.0)
        for seed in range(5)
    ]
    found = {result.contrast: result for result in conclude(subjects) if result.claim.quantity == "λmax of fc1"}
    assert list(found) == list(CONTRASTS)
    assert [result.answer for result in found.values()] == ["contradicted", "supported", "undecided", "supported"]
    effects = [[comparison.effect for comparison in result.comparisons] for result in found.values()]
    for own, expected in zip(effects, ([2.0, 2.0], [0.5, 0.5], [1.0], [0.25, 0.25]), strict=True):
        assert own == pytest.approx(expected, rel=0.02)
    assert [c.setting for c in found["MAN"].comparisons] == ["ζ = 0.1", "ζ = 0.5"]
    assert [c.setting for c in found["only the logits penalised"].comparisons] == ["ζ = 0, logits 1"]


def points(groups: Sequence[Sequence[tuple[float, float]]]) -> list[Point]:
    """The n-th pair of every group comes from seed n."""
    return [Point(g, seed, *pair) for g, group in enumerate(groups) for seed, pair in enumerate(group)]


def test_correlations_are_taken_within_what_is_held_fixed() -> None:
    """Within a group the eigenvalue is the norm squared; between groups it falls: only the first is what is asked."""
    groups = [[(x * 10.0**g, (x * 10.0**g) ** 2 / 1000.0**g) for x in (1.0, 2.0, 3.0)] for g in range(3)]
    found = correlate("seeds", "fc2", points(groups))
    assert found is not None
    assert found.r == pytest.approx(1)
    assert found.points == 9
    assert correlate("seeds", "fc1", points([[(64.0, 1.0), (64.0, 2.0), (64.0, 3.0), (64.0, 4.0)]])) is None
    assert correlate("seeds", "fc1", points([[(1.0, 1.0), (2.0, 2.0)]])) is None


def test_seeds_are_what_a_correlation_counts() -> None:
    """Points of a seed that say the same again narrow nothing; independent seeds do, and the interval covers."""
    generator = np.random.default_rng(0)
    covered, widths = 0, []
    for _ in range(200):
        a = generator.normal(size=8)
        b = a + generator.normal(size=8)
        seeds = [Point("", seed, math.exp(a[seed]), math.exp(b[seed])) for seed in range(8)]
        once, thrice = correlate("layers", "", seeds), correlate("layers", "", 3 * seeds)
        assert once is not None
        assert thrice is not None
        assert (once.low, once.high) == pytest.approx((thrice.low, thrice.high))
        assert (once.seeds, thrice.points) == (8, 24)
        covered += once.low <= math.sqrt(0.5) <= once.high
        widths.append(once.high - once.low)
    assert covered >= 180
    few = correlate("layers", "", [Point(seed, seed, x, x**2 * (1 + seed)) for seed in (0, 1) for x in (1.0, 2.0, 3.0)])
    assert few is not None
    assert math.isnan(few.low)


@pytest.mark.parametrize("images", [359, 10_000])
def test_equal_differences_decide_nothing_by_themselves(images: int) -> None:
    claim = Claim("test accuracy", "higher", ratio=False)
    without = {seed: {"test accuracy": value} for seed, value in {0: 0.95, 1: 0.96, 2: 0.94}.items()}
    with_man = {seed: {"test accuracy": value["test accuracy"] + 1 / images} for seed, value in without.items()}
    (comparison,) = compare([claim], without, {"zeta": with_man})
    assert comparison.p > 0.01
    assert comparison.high - comparison.low > 1 / images
    same = {seed: {"test accuracy": 0.5} for seed in range(3)}
    (alike,) = compare([claim], same, {"": same})
    assert alike.p == 1
    assert math.isnan(alike.low)


def test_equal_ratios_are_known_to_the_tolerance_of_what_was_measured() -> None:
    claim = Claim("trace", "lower")
    without = {seed: {"trace": value} for seed, value in enumerate((1.0, 2.0, 3.0))}
    (comparison,) = compare([claim], without, {"": {k: {"trace": v["trace"] * 0.9999} for k, v in without.items()}})
    assert comparison.p > 0.05
    assert comparison.low < 0.9999 < comparison.high


def test_the_correlations_of_a_study() -> None:
    subjects = study(lambda zeta, seed: (4 * (1 + zeta), 100 / (1 + 10 * zeta) * (1 + 0.1 * seed)))
    found = {(c.over, c.layer): c.r for c in correlations(subjects)}
    assert found["coefficients", "fc2"] == pytest.approx(1)
    assert found["seeds", "fc2"] == pytest.approx(1)
    assert ("seeds", "fc1") not in found  # the norm of the images does not vary
    assert ("layers", "") in found
    assert ("rounds", "fc2") not in found  # a single round


def test_what_is_measured_of_a_network_is_what_dense_matrices_give() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    measured = measure(make_problem(model, "cross_entropy", (x, y)))
    network = examine(model, x, y)
    assert measured.top == pytest.approx(network.eigenvalues[-1].item(), rel=1e-4)
    assert abs(measured.trace - network.hessian.trace().item()) < 5 * measured.trace_error + 1e-12
    relative = 0.0
    for layer, expected in zip(measured.layers, network.layers, strict=True):
        H = network.hessian[expected.block, expected.block]
        assert layer.top == pytest.approx(torch.linalg.eigvalsh(H)[-1].item(), rel=1e-4)
        weight = expected.linear.weight.detach()
        relative += (weight.square().sum() * torch.linalg.eigvalsh(H[: weight.numel(), : weight.numel()])[-1]).item()
    assert measured.relative_top == pytest.approx(relative, rel=1e-4)
    assert measured.layers[1].input_norm2 == pytest.approx(model[1](model[0](x)).square().sum(1).mean().item())
