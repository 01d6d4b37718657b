"""What an eigenvalue of a saturated loss claims, where some targets do not count; and of other losses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.density import spectral_density
from analysis.flatness import flatness
from analysis.lanczos import lanczos
from analysis.layer_blocks import LayerBlocks
from analysis.operators import hessian
from analysis.power import power_iteration
from analysis.problem import Problem, make_problem
from analysis.saturation import lost_share
from analysis.spectrum import eigs, layer_eigenpairs
from analysis.trace import Estimate, hutch_plus_plus, hutchinson
from flatlab.measuring.trace import Probing, measure_trace


@pytest.mark.parametrize("sure", [30.0, 37.5])
@pytest.mark.parametrize("how", ["ignored", "weightless", "none"])
def test_targets_that_do_not_count_say_nothing_of_rounding(how: str, sure: float) -> None:
    x = torch.cat([torch.ones(10, 1), torch.full((10, 1), 0.01)]).double()
    y = torch.cat([torch.ones(10).long(), torch.full((10,), {"ignored": -100, "weightless": 2, "none": 1}[how])])
    model = nn.Linear(1, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[sure], [0.0], [-1e9]]))
    if how == "none":
        x, y = x[:10], y[:10]
    loss: Any = nn.CrossEntropyLoss(torch.tensor([1.0, 1.0, 0.0])) if how == "weightless" else "cross_entropy"
    (value,) = eigs(make_problem(model, loss, (x, y), dtype=torch.float64), 1, layers=[]).eigenvalues
    p = 1 / (1 + math.exp(sure))
    assert abs(value.value - 2 * p * (1 - p)) <= value.residual
    assert value.residual < 1e-14


def test_the_last_of_next_tokens_predicts_nothing() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.tensor([[0.0, 60.0, 0.0], [60.0, 0.0, 0.0], [0.1, 0.0, 0.2]]))

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.table[input_ids]

    def share(*tokens: int) -> float:
        ids = torch.tensor([tokens])
        return lost_share(make_problem(Tokens(), "next_token", ({"input_ids": ids}, ids), dtype=torch.float64))

    assert share(0, 1, 0, 2) == 1.0  # after 0 and 1 it is sure, after 2 it is not, and there is nothing to predict
    assert share(0, 2, 0, 1) < 1e-13


def test_a_negative_loss_is_no_softmaxs() -> None:
    class Density(nn.Module):
        """The negative log-likelihood of a normal distribution, on narrow data."""

        def __init__(self) -> None:
            super().__init__()
            self.mean, self.log = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.full((2,), -3.0))

        def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            return (((x - self.mean) / self.log.exp()) ** 2 / 2 + self.log + math.log(2 * math.pi) / 2).sum(1).mean()

    x = 0.05 * torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    problem = make_problem(Density(), "own_per_sample", (x, torch.zeros(30).long()), dtype=torch.float64)
    (value,) = eigs(problem, 1, layers=[]).eigenvalues
    expected = torch.autograd.functional.hessian(
        lambda theta: (((x.double() - theta[:2]) / theta[2:].exp()) ** 2 / 2 + theta[2:]).sum(1).mean(), problem.point()
    )
    assert value.value == pytest.approx(torch.linalg.eigvalsh(torch.as_tensor(expected)).max().item(), rel=1e-6)
    assert value.converged
    assert value.residual < 1e-2


def saturated(sure: float, wide: int, dtype: torch.dtype) -> Problem:
    """A linear classifier of 3 * (wide + 1) parameters that is sure of every sample, and right."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.cat([F.one_hot(y, 3).float(), torch.zeros(60, wide - 3)], 1)
    x += 0.02 * torch.randn(60, wide, generator=generator)
    model = nn.Linear(wide, 3)
    with torch.no_grad():
        model.weight.copy_(sure * torch.eye(3, wide))
        model.bias.zero_()
    return make_problem(model.to(dtype), "cross_entropy", (x.to(dtype), y))


@pytest.mark.parametrize(("wide", "tol"), [(3, 0.02), (12, 0.1)])  # worked through whole, and by probes
@pytest.mark.parametrize(
    ("sure", "dtype", "rounded"), [(17, "float32", True), (3, "float32", False), (35, "float64", True)]
)
def test_a_trace_counts_what_rounding_takes(wide: int, tol: float, sure: float, dtype: str, rounded: bool) -> None:
    problem = saturated(sure, wide, getattr(torch, dtype))
    exact = exact_hessian(problem)
    truth = exact.trace().item()
    moments = hutchinson(hessian(problem), tol=tol)
    assert (moments.converged, moments.rounded) == (not rounded, rounded)
    assert abs(moments.trace.value - truth) <= 2.6 * moments.trace.standard_error
    assert abs(moments.frobenius.value - exact.norm().item()) <= 3 * moments.frobenius.standard_error
    sketched = hutch_plus_plus(hessian(problem), 30)
    assert abs(sketched.value - truth) <= 2.6 * sketched.standard_error
    assert sketched.is_rounded(tol) == rounded
    assert [measure_trace(problem, Probing(share, 30, "hutch++")).finished for share in (tol, 1e-9)] == [
        sketched.is_settled(tol),
        sketched.is_settled(1e-9),
    ]
    density = spectral_density(hessian(problem), depth=9, probes=3)
    assert (density.rounding > 0.01) == rounded
    report = flatness(problem, trace_tol=tol)
    assert (report.trace_converged, report.trace_rounded) == (not rounded, rounded)
    (layer,) = report.layers
    block = exact[: 3 * wide, : 3 * wide].trace().item()
    assert abs(layer.trace.value - block) <= 2.6 * layer.trace.standard_error


def exact_hessian(problem: Problem) -> Tensor:
    """The mean over samples of J^T (diag p - p p^T) J, from sums of p that leave out nothing by cancelling."""
    (((x,), _),) = problem.data
    assert isinstance(x, Tensor)
    weight, bias = (p.double() for p in problem.parameters.values())
    total = torch.zeros(problem.size, problem.size, dtype=torch.float64)
    for row in x.double():
        p = torch.softmax(weight @ row + bias, 0)
        others = torch.stack([p[:i].sum() + p[i + 1 :].sum() for i in range(3)])
        middle = torch.diag(p * others) - (p[:, None] * p) * (1 - torch.eye(3))
        J = torch.cat([torch.kron(torch.eye(3).double(), row[None]), torch.eye(3).double()], 1)
        total += J.T @ middle @ J / len(x)
    return total


@pytest.mark.parametrize(
    ("error", "rounding", "settled", "rounded"),
    [(0.01, 0.0, True, False), (0.03, 0.0, False, False), (0.015, 0.0149, True, True), (0.5, 0.4, False, True)],
)
def test_what_probes_leave_and_what_rounding_takes(error: float, rounding: float, settled: bool, rounded: bool) -> None:
    estimate = Estimate(1.0, error, rounding)
    assert (estimate.is_settled(0.02), estimate.is_rounded(0.02)) == (settled, rounded)


def mine(outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    return F.cross_entropy(outputs, targets, reduction="sum"), len(targets)


def by_hand(outputs: Tensor, targets: Tensor) -> Tensor:
    return -outputs.log_softmax(1).gather(1, targets[:, None]).mean()


@pytest.mark.parametrize("loss", ["cross_entropy", mine, by_hand])
def test_every_way_to_a_saturated_hessian_says_what_rounding_took(loss: Any) -> None:
    like = saturated(35, 12, torch.float64)
    (((x,), y),) = like.data
    problem = make_problem(like.model, loss, (x, y), parameters=list(like.parameters))
    truth = torch.linalg.eigvalsh(exact_hessian(like))[-1].item()
    block = LayerBlocks(problem).operator("")
    found = [f(A) for f in (lanczos, power_iteration) for A in (hessian(problem), block)]
    for pairs in (*found, *layer_eigenpairs(problem).values()):
        assert not pairs.converged.any()
        assert pairs.rounded.all()
        assert abs(pairs.values[0].item() - truth) <= 3 * pairs.residuals[0].item()
    assert not hutchinson(hessian(problem), tol=0.1).converged
    assert spectral_density(hessian(problem), depth=9, probes=3).rounding > 0.01


def test_a_function_that_takes_no_softmax_is_not_taken_for_saturated() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 2, dtype=torch.float64)
    y = model(x).detach() + 1e-9  # all but fitted
    problem = make_problem(model, lambda z, t: ((z - t) ** 2).sum(1).mean(), (x, y))
    assert lost_share(problem) == 0.0
    assert lanczos(hessian(problem)).converged.all()


def brier(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs.softmax(1) - targets) ** 2).sum(1).mean()


def distilled(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(outputs, dim=1), targets.log(), reduction="batchmean", log_target=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", [brier, distilled])
def test_a_loss_that_vanishes_where_nothing_is_sure_is_exact(loss: Any, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Linear(3, 3, dtype=torch.float64)
    x = torch.randn(20, 3, dtype=torch.float64)
    problem = make_problem(model, loss, (x, model(x).detach().softmax(1)))  # at its own predictions: L = 0
    assert lost_share(problem) < 1e-14
    pairs = lanczos(hessian(problem))
    assert pairs.converged.all()
    dense = hessian(problem)(torch.eye(12, dtype=torch.float64))
    assert pairs.values[0].item() == pytest.approx(torch.linalg.eigvalsh(dense)[-1].item(), rel=1e-6)


def test_predictions_of_padding_say_nothing_in_a_function_either() -> None:
    like = saturated(35, 12, torch.float64)
    (((x,), y),) = like.data
    samples = torch.cat([x, torch.zeros(60, 12, dtype=torch.float64)]) if isinstance(x, Tensor) else x

    def padded(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(outputs, targets, ignore_index=7, reduction="sum"), (targets != 7).sum()

    def share(inputs: Any, targets: Tensor) -> float:
        return lost_share(make_problem(like.model, padded, (inputs, targets), parameters=list(like.parameters)))

    assert share(samples, torch.cat([y, torch.full((60,), 7)])) == pytest.approx(share(x, y))


def softplus_poisson(outputs: Tensor, targets: Tensor) -> Tensor:
    rate = F.softplus(outputs[:, 0] + 60)
    return (rate - targets * rate.log()).mean()


def mixture(outputs: Tensor, targets: Tensor) -> Tensor:
    apart = torch.tensor([0.0, 50.0], dtype=outputs.dtype)
    return -torch.logsumexp(-0.5 * ((outputs[:, :1] + apart - targets[:, None]) / 0.1) ** 2, 1).mean()


def two_tasks(outputs: Tensor, targets: Tensor) -> Tensor:
    sure = F.binary_cross_entropy_with_logits(50 + 0 * outputs[:, 1], torch.ones_like(targets))
    return ((outputs[:, 0] - targets) ** 2).mean() + sure


def log_space(outputs: Tensor, targets: Tensor) -> Tensor:
    impossible = torch.full_like(outputs, -torch.inf)
    paths = torch.stack([outputs.log_softmax(1), impossible]).logsumexp(0)
    unreachable = torch.logsumexp(impossible, 1).exp().sum()
    nothing = outputs[targets > 1e9].exp().sum()
    return -(paths[:, 0]).mean() + unreachable + nothing


@pytest.mark.parametrize("loss", [softplus_poisson, mixture, two_tasks, log_space])
def test_a_loss_with_something_sure_in_it_is_not_all_lost(loss: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2, dtype=torch.float64)
    x = torch.randn(20, 3, dtype=torch.float64)
    problem = make_problem(model, loss, (x, model(x).detach()[:, 0] + torch.randn(20, dtype=torch.float64)))
    pairs = lanczos(hessian(problem))
    dense = hessian(problem)(torch.eye(8, dtype=torch.float64))
    assert pairs.converged.all()
    assert pairs.residuals.isfinite().all()
    assert pairs.values[0].item() == pytest.approx(torch.linalg.eigvalsh(dense)[-1].item(), rel=1e-6)


@pytest.mark.parametrize("loss", [nn.NLLLoss(), lambda z, t: (F.nll_loss(z, t, reduction="sum"), (t != -100).sum())])
def test_predictions_of_ignored_labels_say_nothing_in_nll_loss_either(loss: Any) -> None:
    like = saturated(36, 12, torch.float64)
    (((x,), y),) = like.data
    both = (torch.cat([torch.as_tensor(x), torch.zeros(60, 12).double()]), torch.cat([y, torch.full((60,), -100)]))
    model = nn.Sequential(like.model, nn.LogSoftmax(1))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    assert lost_share(make_problem(model, loss, both)) > 0.1


def test_a_loss_within_vmap_is_judged_by_its_value() -> None:
    like = saturated(35, 12, torch.float64)
    (((x,), y),) = like.data
    problem = make_problem(
        like.model, lambda z, t: torch.vmap(F.cross_entropy)(z, t).mean(), (x, y), parameters=list(like.parameters)
    )
    assert not lanczos(hessian(problem)).converged.any()
