"""What a result certifies: nothing larger missed, residuals that are true of H and not of its float32 copy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.confirmation import in_float64
from analysis.eigenpairs import PROBABILITY
from analysis.errors import MeasurementError
from analysis.lanczos import lanczos
from analysis.operators import SymmetricOperator, hessian, matrix_operator
from analysis.overlooked import BEYOND, Chain
from analysis.power import power_iteration
from analysis.problem import Problem, make_problem
from analysis.spectrum import eigs
from analysis.subsets import batch_spectra, client_spectra
from analysis.vectors import _STANDS_OUT, norm, random_rows
from benchmarks.overlooked import KINDS, Spectrum, spectra

TOL = 1e-3


def operator_of(spectrum: Spectrum) -> SymmetricOperator:
    return SymmetricOperator(
        len(spectrum.matrix),
        torch.float64,
        torch.device("cpu"),
        lambda rows: rows @ spectrum.matrix,
        lambda: spectrum.start,
    )


def dense(problem: Problem) -> Tensor:
    """The Hessian in float64, a column at a time."""
    return hessian(in_float64(problem)).rows(torch.eye(problem.size, dtype=torch.float64))


@pytest.mark.long
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_neither_end_is_missed_on_networks_whose_gradient_hides_it(which: Any) -> None:
    for spectrum in spectra(4 * len(KINDS), seed=5):
        pairs = lanczos(operator_of(spectrum), which=which, tol=TOL)
        right = spectrum.values[-1 if which == "largest" else 0].item()
        assert pairs.finished
        assert pairs.missed <= PROBABILITY
        floor = 1e-13 * spectrum.values.abs().max().item()
        assert abs(pairs.values[0].item() - right) <= BEYOND * TOL * abs(right) + pairs.residuals[0].item() + floor


@pytest.mark.parametrize("find", [lanczos, power_iteration])
def test_a_start_orthogonal_to_the_top_does_not_hide_it(find: Any) -> None:
    values = torch.cat([torch.tensor([10.0]), torch.linspace(6, -3, 199)]).double()
    start = torch.cat([torch.zeros(1), torch.ones(1), torch.zeros(198)]).double()[:, None]
    operator = SymmetricOperator(200, torch.float64, torch.device("cpu"), lambda rows: rows * values, lambda: start)
    pairs = find(operator, tol=TOL)
    assert pairs.converged.all()
    assert pairs.values[0].item() == pytest.approx(10, rel=TOL)


@given(seed=st.integers(0, 1000), depth=st.integers(1, 25), size=st.integers(41, 90))
@settings(max_examples=30, deadline=None)
def test_the_chain_bounds_every_part_of_the_start(seed: int, depth: int, size: int) -> None:
    """|e . q| is below what the chain allows, for the true top e."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, dtype=torch.float64, generator=generator)
    q = torch.randn(size, dtype=torch.float64, generator=generator)
    chain = Chain(1.0, math.log(q.norm().item()), torch.zeros(0, dtype=torch.float64))
    basis, T, w = q[None] / q.norm(), torch.zeros(0, 0, dtype=torch.float64), q
    for _ in range(depth):
        T = basis @ (values[:, None] * basis.T)
        w = basis[-1] * values
        w = w - basis.T @ (basis @ w)
        w = w - basis.T @ (basis @ w)
        chain.extended(w.norm().item())
        basis = torch.cat([basis, w[None] / w.norm()])
    ritz, s = torch.linalg.eigh(T)
    residuals = w.norm() * s[-1].abs()
    top = int(values.argmax())
    assume(values[top] - ritz[-1] > 1e-6)
    bound = chain.missed(ritz, residuals, [(1, values[top].item())], 0.0) / math.sqrt(2 / math.pi)
    assert abs(q[top].item()) <= bound * (1 + 1e-6) or bound >= math.e


@pytest.mark.long
def test_the_probability_is_not_understated() -> None:
    """Stopped at the first chance, the top is missed more rarely than the result says."""
    values = torch.cat([torch.tensor([1.02]), torch.linspace(1, -1, 299)]).double()
    operator = matrix_operator(torch.diag(values))
    results = [lanczos(operator, tol=1e-2, seed=seed) for seed in range(60)]
    wrong = sum(bool(r.values[0] * (1 + BEYOND * 1e-2) < 1.02) for r in results)
    assert wrong <= PROBABILITY * len(results)


@pytest.mark.parametrize("seed", range(5))
def test_a_start_of_the_same_seed_cannot_hide_the_top(seed: int) -> None:
    """What an earlier search found depends on its noise; here it cancels the part of that noise in the top."""
    values = torch.cat([torch.tensor([1.5]), torch.linspace(1, -1, 299)]).double()
    z = random_rows(1, 300, values, torch.Generator().manual_seed(seed))[0]
    found = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + seed))
    found[0] = 0
    part = -z[0] / _STANDS_OUT
    found = torch.cat([part[None], found[1:] / norm(found) * (1 - part**2).sqrt()])
    operator = matrix_operator(torch.diag(values))
    for find in (lanczos, power_iteration):
        pairs = find(operator, start=found[:, None], tol=TOL, max_iter=2000, seed=seed)
        assert pairs.converged.all()
        assert pairs.values[0].item() == pytest.approx(1.5, rel=BEYOND * TOL)


def test_what_is_not_certified_claims_no_sharper_bound() -> None:
    values = torch.cat([torch.tensor([10.0]), torch.linspace(6, -3, 199)]).double()
    operator = matrix_operator(torch.diag(values))
    full = lanczos(operator, tol=TOL).products
    seen = set()
    for max_iter in range(1, full):
        pairs = lanczos(operator, tol=TOL, max_iter=max_iter)
        certified = pairs.missed <= PROBABILITY and bool((pairs.residuals <= TOL * pairs.values.abs()).all())
        assert pairs.converged.all() == certified
        assert certified or (pairs.quadratic == pairs.residuals).all()
        seen.add(certified)
    assert seen == {False, True}
    assert lanczos(operator, tol=TOL, max_iter=full).converged.all()


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_a_small_space_is_worked_through_whole(size: int, make_matrix: Any) -> None:
    values = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    for which, right in (("largest", values.max()), ("smallest", values.min())):
        pairs = lanczos(matrix_operator(make_matrix(values)), which=which, tol=0.5)  # type: ignore[arg-type]
        assert pairs.missed == 0
        assert pairs.values[0].item() == pytest.approx(right.item(), rel=1e-10)


def test_converged_keeps_the_tolerance_beside_a_huge_eigenvalue() -> None:
    diagonal = torch.cat([torch.tensor([-1e6]), torch.linspace(-1e-6, 1e-6, 60)])
    pairs = lanczos(SymmetricOperator(61, torch.float32, torch.device("cpu"), lambda rows: rows * diagonal))
    assert not pairs.converged.any()


def _stiff(seed: int, scale: float) -> Problem:
    """A float32 network whose layers differ in size by `scale`, so that H in float32 is not H."""
    torch.manual_seed(seed)
    last = nn.Linear(6, 3)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), last)
    with torch.no_grad():
        last.weight.mul_(scale)
    return make_problem(model, "mse", (torch.randn(12, 5), torch.randn(12, 3)))


@pytest.mark.parametrize("tol", [1e-3, 1e-5, 1e-6])
def test_an_eigenvalue_lies_within_every_float32_residual(tol: float) -> None:
    for seed in range(8):
        problem = _stiff(seed, 10.0 ** (seed % 4))
        exact = torch.linalg.eigvalsh(dense(problem))
        report = eigs(problem, tol=tol)
        (found,) = report.eigenvalues
        assert found.confirmed
        assert (exact - found.value).abs().min() <= found.residual
        v = report.vectors[:, 0].double()
        image = hessian(in_float64(problem)).rows(v[None])[0] / v.norm()
        v = v / v.norm()
        assert (image - found.value * v).norm().item() <= found.residual * (1 + 1e-6)
        assert not found.converged or found.residual <= tol * abs(found.value)
        assert all(value.confirmed for layer in report.layers for value in layer.eigenvalues)


def test_clients_and_batches_are_confirmed_in_float64_too() -> None:
    problem = _stiff(0, 100.0)
    clients = client_spectra({"a": problem.part(0, 2), "b": problem.part(1, 2)})
    assert all(value.confirmed for value in (*clients.whole, *(v for own in clients.clients.values() for v in own)))
    found = batch_spectra(problem, 6, tol=TOL)
    exact = torch.linalg.eigvalsh(dense(problem.on([next(iter(problem.data))])))
    assert found.converged.all()
    assert found.residuals.max() <= TOL * exact[-1].abs() * 2


def test_a_loss_that_cannot_run_in_float64_leaves_residuals_unconfirmed() -> None:
    torch.manual_seed(0)
    model, weight = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3)), torch.tensor([1.0, 2.0, 3.0])
    data = torch.randn(12, 5), torch.randn(12, 3)
    problem = make_problem(model, lambda z, y: torch.dot((z - y).square().mean(0), weight), data)
    assert not eigs(problem, layers=[]).eigenvalues[0].confirmed


class Recurrent(nn.Module):
    """Its first state is float32, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.from_numpy(np.zeros((1, len(x), 5), np.float32))  # torch.zeros takes the problem's type
        z: Tensor = self.head(self.cell(x, (state, state))[0][:, -1])
        return z


_CLASSES = torch.tensor([1.0, 2.0, 3.0])


def _by_class(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return F.cross_entropy(z, y, weight=_CLASSES, reduction="sum"), _CLASSES[y].sum()


@pytest.mark.parametrize(
    ("make", "loss", "x"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)), _by_class, torch.randn(9, 4)),
        (Recurrent, F.cross_entropy, torch.randn(9, 6, 4)),
    ],
)
def test_layers_too_are_measured_where_nothing_runs_in_float64(make: Any, loss: Any, x: Tensor) -> None:
    torch.manual_seed(0)
    data = x, torch.arange(9) % 3
    problem = make_problem(make(), loss, data)
    matrix = hessian(problem)(torch.eye(problem.size)).double()
    for group_by in (None, "*"):
        report = eigs(problem, group_by=group_by)
        found = [*report.eigenvalues, *(value for layer in report.layers for value in layer.eigenvalues)]
        assert not any(value.confirmed for value in found)
        layer = report.layers[0]
        block = matrix[: layer.parameters, : layer.parameters]
        assert layer.eigenvalues[0].value == pytest.approx(torch.linalg.eigvalsh(block)[-1].item(), rel=1e-3)
    with pytest.raises(MeasurementError, match=r"does not run in float64 \(.*(Double|double).*\)"):
        make_problem(make(), loss, data, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"shape|size"):  # what fails in float32 too is another error
        make_problem(make(), loss, (torch.randn(9, 7, 11), data[1]), dtype=torch.float64)


class _Sudden(torch.autograd.Function):
    """The identity, whose second derivative is NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient[0] * (1 + torch.sqrt(0 * x).nan_to_num())


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("method", ["lanczos", "power"])
def test_nan_in_a_product_is_a_sentence(method: Any, k: int) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(5, 9), nn.Linear(9, 3)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.second(_Sudden.apply(self.first(x)))  # type: ignore[no-untyped-call]
            return z

    problem = make_problem(Model().double(), F.mse_loss, (torch.randn(6, 5), torch.randn(6, 3)))
    with pytest.raises(MeasurementError, match="not finite"):
        eigs(problem, k, method=method, layers=[])
