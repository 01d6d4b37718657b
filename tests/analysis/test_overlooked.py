"""What a search by Lanczos may have overlooked, against the inequality that bounds it, evaluated densely."""

import math
import sys
from collections.abc import Generator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analysis.density import spectral_density
from analysis.eigenpairs import PROBABILITY
from analysis.lanczos import lanczos
from analysis.operators import SymmetricOperator, matrix_operator
from analysis.overlooked import BEYOND, Seen, Verdict, limits_of, overlooked
from analysis.power import power_iteration
from analysis.trace import hutch_plus_plus
from analysis.vectors import random_rows
from benchmarks.curvature import tensors_peak

TOL = 1e-3


def run(spectrum: Tensor, found: int, borders: Sequence[tuple[int, float]], seed: int = 0) -> tuple[bool | None, int]:
    """Look beside the first `found` eigenvectors of diag(spectrum)."""
    Q = torch.eye(len(spectrum), dtype=torch.float64)[:found]
    seen = Seen(Q, spectrum[:found], torch.zeros(found, found).double())
    limits = limits_of(borders, TOL, 0.0, torch.float64)
    verdict = finished(overlooked(seen, limits, PROBABILITY, 200, None, torch.Generator().manual_seed(seed)), spectrum)
    return verdict.crossed, verdict.products


def finished(look: Generator[Tensor, Tensor, Verdict], spectrum: Tensor) -> Verdict:
    """What a look comes to on diag(spectrum)."""
    try:
        rows = next(look)
        while True:
            rows = look.send(rows * spectrum)
    except StopIteration as stop:
        verdict: Verdict = stop.value
        return verdict


def steps_by_the_inequality(spectrum: Tensor, found: int, x: float, seed: int) -> int:
    """The first d at which |prod_i (C - t_i) z| / prod_i |x - t_i| says that e . z is improbably small."""
    C = torch.cat([torch.zeros(found), spectrum[found:]]).double()
    z = random_rows(1, len(C), C, torch.Generator().manual_seed(seed))[0]
    z[:found] = 0
    for d in range(1, len(C)):
        K, _ = torch.linalg.qr(torch.stack([z * (C / C.abs().max()) ** i for i in range(d)], dim=1))
        w = z
        product = 1.0
        for t in torch.linalg.eigvalsh(K.T @ (C[:, None] * K)).tolist():
            w = (C - t) * w
            product *= abs(x * (1 + BEYOND * TOL) - t)
        if w.norm() / product * math.sqrt(2 / math.pi) <= PROBABILITY:
            return d
    raise AssertionError("never")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rest", [3.0, 6.0])
def test_it_stops_as_soon_as_the_inequality_allows(rest: float, seed: int) -> None:
    spectrum = torch.cat([torch.tensor([10.0, 9.0, 8.0]), torch.linspace(rest, -rest, 197)]).double()
    assert run(spectrum, 3, [(1, 8.0)], seed) == (False, steps_by_the_inequality(spectrum, 3, 8.0, seed))


@pytest.mark.parametrize(("border", "values"), [((1, 5.0), [9.0, 5.0, 6.0]), ((-1, -5.0), [-9.0, -5.0, -6.0])])
def test_an_eigenvalue_beyond_the_border_is_seen(border: tuple[int, float], values: list[float]) -> None:
    spectrum = torch.cat([torch.tensor(values), torch.linspace(3, -3, 197)]).double()
    assert [run(spectrum, 2, [border], seed)[0] for seed in range(40)] == [True] * 40
    assert not run(spectrum, 3, [border])[0]


def test_a_copy_of_the_last_wanted_changes_nothing_and_costs_little() -> None:
    spectrum = torch.cat([torch.tensor([9.0, 5.0, 5.0]), torch.linspace(3, -3, 197)]).double()
    crossed, steps = run(spectrum, 2, [(1, 5.0)])
    assert not crossed
    assert steps < 20


@pytest.mark.long
@pytest.mark.parametrize(
    "copied", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)]
)
def test_second_copies_stay_overlooked_more_rarely_than_promised(copied: int) -> None:
    """Single-vector Lanczos sees one copy; the share of wrong results is that of what is overlooked."""
    distinct = [10 / (1 + i / 3) for i in range(30)]
    spectrum = sorted([*distinct, distinct[copied], *torch.linspace(1, -1, 170).tolist()], reverse=True)
    operator = matrix_operator(torch.diag(torch.tensor(spectrum, dtype=torch.float64)))
    exact = torch.tensor(spectrum[:5], dtype=torch.float64)
    results = [lanczos(operator, 5, tol=TOL, seed=seed).values for seed in range(40)]
    wrong = sum(not torch.allclose(values, exact, rtol=TOL) for values in results)
    assert wrong <= PROBABILITY * len(results)


@pytest.mark.parametrize("which", ["smallest", "largest"])
def test_what_is_left_out_does_not_come_back_by_rounding(which: Any) -> None:
    """Where zero is no eigenvalue beyond the wanted ones, what was found would seem to be one of zero."""
    copies = 10
    values = torch.linspace(0.2, 5, 60, dtype=torch.float64).repeat_interleave(copies)
    values = values if which == "smallest" else -values
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(0)).double())
    matrix = (q * values) @ q.T
    operator = matrix_operator(matrix.float())
    for seed in range(2):
        pairs = lanczos(operator, copies, which=which, seed=seed)
        assert pairs.converged.all()
        assert pairs.products < 100 * copies
        assert pairs.values.tolist() == pytest.approx([values[0].item()] * copies, rel=1e-4)


@pytest.mark.parametrize("find", [lanczos, power_iteration])
@pytest.mark.parametrize("size", [200, 1200])
def test_all_looks_together_miss_no_more_than_is_said(find: Any, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of an eigenvalue that show late make a search look several times, each with a chance to miss."""
    module = sys.modules[find.__module__]
    look, spent = module.overlooked, []

    def noted(seen: Seen, limits: Any, probability: float, *rest: Any) -> Any:
        spent.append(probability)
        return look(seen, limits, probability, *rest)

    monkeypatch.setattr(module, "overlooked", noted)
    spectrum = torch.cat([torch.tensor([9.0, 9.0, 5.0]), torch.linspace(3, -3, size - 3)]).double()
    start = torch.eye(size, dtype=torch.float64)[:, [0, 2]]
    pairs = find(matrix_operator(torch.diag(spectrum)), 2, start=start, tol=0.2, max_iter=600)
    assert pairs.values.tolist() == pytest.approx([9.0, 9.0], rel=0.2)
    assert len(spent) > 1
    assert 0 < sum(spent) <= pairs.missed <= PROBABILITY


def test_a_look_that_ran_out_of_products_is_no_convergence() -> None:
    spectrum = torch.cat([torch.tensor([9.0, 5.0]), torch.linspace(3, -3, 198)]).double()
    operator = matrix_operator(torch.diag(spectrum))
    full = lanczos(operator, 2, tol=TOL).products
    for max_iter in range(1, full):
        pairs = lanczos(operator, 2, tol=TOL, max_iter=max_iter)
        assert pairs.converged.all() == (2 * max_iter >= full)
        assert pairs.products == min(full, 2 * max_iter)


@given(seed=st.integers(0, 10_000), size=st.integers(4, 12), found=st.integers(1, 3), sign=st.sampled_from([1, -1]))
@settings(max_examples=200, deadline=None)
def test_no_more_eigenvalues_lie_beyond_than_are_accounted_for(seed: int, size: int, found: int, sign: int) -> None:
    """For Ritz vectors however bad, and a bound on the rest however tight."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(size, size, dtype=torch.float64, generator=generator)
    A = A + A.T
    Q = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0].T
    values, rotation = torch.linalg.eigh(Q[:found] @ A @ Q[:found].T)
    E = Q[found:] @ A @ Q[:found].T @ rotation
    seen = Seen(rotation.T @ Q[:found], values, E.T @ E)
    beyond = (sign * torch.linalg.eigvalsh(Q[found:] @ A @ Q[found:].T)).max().item()
    for at in torch.linspace(beyond - 1, beyond + 12, 40).tolist():
        if seen.accounts_for(sign, at, beyond):
            assert (sign * torch.linalg.eigvalsh(A) > at).sum() == (sign * values > at).sum()
    assert seen.accounts_for(sign, beyond + 1e3, beyond)


def test_what_is_settled_beside_the_wanted_is_left_out_of_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a look that has more to see to says the same with more products."""
    A = matrix_operator(torch.diag(60 * torch.arange(1, 3001, dtype=torch.float64) ** -0.25))
    settled = lanczos(A, 5, tol=TOL)
    monkeypatch.setattr(Seen, "settled", lambda seen, limits, k, most: seen.first(k))
    wanted_alone = lanczos(A, 5, tol=TOL)
    assert settled.products < wanted_alone.products
    assert bool(settled.converged.all())
    torch.testing.assert_close(settled.values, wanted_alone.values)


def test_a_look_writes_over_no_vector_that_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.overlooked._CHEAP", 0)
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.cat([torch.tensor([9.0, 8.0, 7.0]), torch.linspace(3, -3, 197)]).double()
    store = torch.randn(60, 200, dtype=torch.float64, generator=generator)
    store[:3] = torch.eye(200, dtype=torch.float64)[:3]
    before = store.clone()
    seen = Seen(store, spectrum[:3], torch.zeros(3, 3).double())
    assert finished(overlooked(seen, ((1, 7.01),), PROBABILITY, 200, None, generator), spectrum).crossed is False
    assert torch.equal(store[:3], before[:3])
    assert not torch.equal(store[3:], before[3:])  # it works in the memory of the others


@pytest.mark.long
@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
def test_three_are_missed_more_rarely_than_promised(which: Any) -> None:
    """Spectra with a cluster at their ends, a part of which the start does not have."""
    wrong, certified = 0, 0
    for seed in range(16):
        generator = torch.Generator().manual_seed(seed)
        values = torch.cat(
            [torch.linspace(1, -1, 240), 1.05 + 0.1 * torch.rand(5, generator=generator), -torch.ones(1)]
        )
        values = values.double()
        start = torch.randn(len(values), 1, dtype=torch.float64, generator=generator) * (values < 1.1)[:, None]
        operator = SymmetricOperator(len(values), values.dtype, values.device, values.__rmul__, start.clone)
        pairs = lanczos(operator, 3, which=which, tol=1e-2, seed=seed)
        last = pairs.values[1 if which == "both" else -1].item()
        beyond = {
            "largest": values > last + BEYOND * 1e-2 * abs(last),
            "smallest": values < last - BEYOND * 1e-2 * abs(last),
            "both": values > last + BEYOND * 1e-2 * abs(last),
            "magnitude": values.abs() > abs(last) * (1 + BEYOND * 1e-2),
        }[which]
        certified += pairs.finished
        wrong += pairs.finished and int(beyond.sum()) > 3
    assert certified >= 12
    assert wrong == 0


@pytest.mark.parametrize(
    ("find", "k"),
    [(lanczos, 1), (lanczos, 4), (power_iteration, 1), pytest.param(power_iteration, 4, marks=pytest.mark.long)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_vectors_held_stay_within_the_room_there_is(
    find: Any, k: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the product in the making and its parts, also while float32 is confirmed in float64."""
    size, room = 20_000, 24
    monkeypatch.setattr(
        "analysis.vectors._PIECE", 1 << 10
    )  # taken to float64 at a time, little beside such vectors too
    values = torch.cat([torch.tensor([9.0, 8.0, 7.5, 7.0, 6.5]), torch.linspace(5, -5, size - 5)]).double()
    own, exact = values.to(dtype), None if dtype == torch.float64 else values.__rmul__
    operator = SymmetricOperator(size, dtype, values.device, own.__rmul__, exact=exact, room=room)
    found: dict[str, Any] = {}
    allowed = (room + 9) * size * dtype.itemsize
    assert tensors_peak(lambda: found.update(pairs=find(operator, k, tol=1e-4, max_iter=600))) * (1 << 20) <= allowed
    pairs = found["pairs"]
    assert pairs.converged.all()
    assert pairs.missed <= PROBABILITY
    torch.testing.assert_close(pairs.values, values[:k], rtol=1e-6, atol=0)
    roomy = SymmetricOperator(size, dtype, values.device, own.__rmul__, exact=exact)
    if find is lanczos and k == 4:
        assert tensors_peak(lambda: lanczos(roomy, k, tol=1e-4)) * (1 << 20) > allowed


def test_estimates_hold_no_more_than_their_vectors() -> None:
    size = 100_000
    operator = SymmetricOperator(
        size, torch.float64, torch.device("cpu"), torch.linspace(5, -5, size).double().__rmul__
    )
    for held, estimate in {
        10: lambda: spectral_density(operator, depth=10, probes=3),
        12: lambda: hutch_plus_plus(operator, 36),
    }.items():
        assert tensors_peak(estimate) * (1 << 20) <= (held + 9) * size * 8
