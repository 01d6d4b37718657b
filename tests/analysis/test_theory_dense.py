"""The statements on networks made so that they are tight, or fail; and that a wrong block does not pass."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from analysis.flatness import flatness
from analysis.problem import make_problem
from analysis.theory.dense import DenseNetwork, dense_checks, dense_hessian, examine, kronecker_block
from analysis.theory.statements import Check, broken

PHI = {"relu": nn.ReLU, "tanh": nn.Tanh, "identity": nn.Identity}


def network(widths: list[int], phi: str = "relu", bias: bool = True, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise(widths):
        layers += [nn.Linear(d_in, d_out, bias), PHI[phi]()]
    return nn.Sequential(*layers[:-1]).double()


def data(samples: int, width: int, classes: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (samples,), generator=generator)


def by_name(checks: list[Check]) -> dict[tuple[str, str], Check]:
    return {(check.statement, check.layer): check for check in checks}


@settings(max_examples=20, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    phi=st.sampled_from(list(PHI)),
    bias=st.booleans(),
    scale=st.floats(0.1, 4.0),
    seed=st.integers(0, 10_000),
)
def test_every_claim_holds_on_any_network(hidden: list[int], phi: str, bias: bool, scale: float, seed: int) -> None:
    model = network([3, *hidden, 4], phi, bias, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    x, y = data(6, 3, 4, seed)
    clients = [(k / 6, dense_hessian(model, x[part], y[part])) for k, part in ((2, slice(0, 2)), (4, slice(2, 6)))]
    checks = dense_checks(examine(model, x, y), clients)
    assert not broken(checks)
    assert {check.statement for check in checks} >= {"K", "A1", "A2", "A3", "P", "S1", "S1 (G)", "S2", "F"}


def test_the_kronecker_block_is_the_equation_written_slowly() -> None:
    model = network([3, 2, 3])
    x, y = data(4, 3, 3)
    first = examine(model, x, y).layers[0]
    expected = torch.zeros(2, 4, 2, 4, dtype=torch.float64)  # d_out, [a; 1], d_out, [a; 1]
    for n in range(4):
        a = torch.cat([x[n], torch.ones(1, dtype=torch.float64)])
        for i in range(2):
            for j in range(2):
                expected[i, :, j, :] += torch.outer(a, a) * first.curvatures[n, i, j] / 4
    weight_then_bias = [(i, k) for i in range(2) for k in range(3)] + [(i, 3) for i in range(2)]
    matrix = torch.stack(
        [torch.stack([expected[i, k, j, m] for j, m in weight_then_bias]) for i, k in weight_then_bias]
    )
    torch.testing.assert_close(kronecker_block(first), matrix)


@pytest.mark.parametrize("phi", ["identity", "relu"])
@pytest.mark.parametrize("copies", [1, 3])
def test_one_sample_makes_a1_and_a2_equalities(phi: str, copies: int) -> None:
    """H_ll = a~ a~^T (x) B has the one eigenvalue |a~|^2 lambda(B); copies of the sample change nothing."""
    x, y = data(1, 3, 4)
    checks = by_name(dense_checks(examine(network([3, 5, 4], phi), x.repeat(copies, 1), y.repeat(copies))))
    for layer in ("0", "2"):
        assert checks["A1", layer].tightness == pytest.approx(1, abs=1e-9)
        assert checks["A2", layer].tightness == pytest.approx(1, abs=1e-9)
    assert checks["A3", "0"].tightness > 1.01


def test_a3_is_an_equality_for_two_classes_that_cannot_be_told() -> None:
    """p = (1/2, 1/2) gives diag(p) - p p^T its largest eigenvalue, 1/2."""
    model = network([3, 2])
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    x, _ = data(1, 3, 2)
    checks = by_name(dense_checks(examine(model, x, torch.tensor([1]))))
    assert checks["A3", "0"].tightness == pytest.approx(1, abs=1e-12)


def test_at_zero_weights_s1_fails_and_s2_is_an_equality() -> None:
    """z = W2 W1 x has no curvature but the mixed one there: H = [[0, C], [C^T, 0]], lambda_min = -lambda_max."""
    model = network([3, 2, 4], "identity", bias=False)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    x, y = data(5, 3, 4)
    checks = by_name(dense_checks(examine(model, x, y)))
    s1, s2 = checks["S1", ""], checks["S2", ""]
    assert (s1.outcome, s1.claimed) == ("fails", False)
    assert s1.right.quoted == pytest.approx(0, abs=1e-15)
    assert s2.outcome == "holds"
    assert s2.tightness == pytest.approx(1, abs=1e-9)


def test_s1_is_claimed_where_the_hessian_is_positive_semidefinite() -> None:
    x, y = data(5, 3, 4)
    convex = by_name(dense_checks(examine(network([3, 4]), x, y)))
    assert (convex["S1", ""].claimed, convex["S1", ""].outcome) == (True, "holds")
    assert convex["S1", ""].tightness == pytest.approx(1)  # one block


def test_p_holds_for_relu_and_fails_for_tanh() -> None:
    x, y = data(8, 3, 4)
    relu, tanh = (by_name(dense_checks(examine(network([3, 5, 4], phi), x, y))) for phi in ("relu", "tanh"))
    assert (relu["P", "0"].claimed, relu["P", "0"].outcome) == (True, "holds")
    assert (tanh["P", "0"].claimed, tanh["P", "0"].outcome) == (False, "fails")
    assert (tanh["P", "2"].claimed, tanh["P", "2"].outcome) == (True, "holds")  # nothing curved after it
    assert ("A3", "0") not in tanh


def test_f_is_an_equality_for_clients_with_the_same_samples() -> None:
    model, (x, y) = network([3, 5, 4]), data(4, 3, 4)
    own = dense_hessian(model, x, y)
    checks = by_name(dense_checks(examine(model, x.repeat(3, 1), y.repeat(3)), [(1 / 3, own), (2 / 3, own)]))
    assert checks["F", ""].tightness == pytest.approx(1, abs=1e-9)


@pytest.mark.long
def test_rescaled_layers_change_eigenvalues_and_norms_but_no_statement_and_no_relative_flatness() -> None:
    """W1, b1 times c and W2 by c: the same function, another point."""
    x, y = data(8, 3, 4)
    models = [network([3, 5, 4]) for _ in range(2)]
    with torch.no_grad():
        W1, b1, W2, _ = models[1].parameters()
        W1.mul_(5), b1.mul_(5), W2.div_(5)
    torch.testing.assert_close(models[0](x), models[1](x))
    before, after = (examine(model, x, y) for model in models)
    assert after.norm > 2 * before.norm
    assert after.layers[1].norms.mean() > 10 * before.layers[1].norms.mean()
    assert not broken(dense_checks(after))
    reports = [flatness(make_problem(model, "cross_entropy", (x, y)), tol=1e-8) for model in models]
    for left, right in zip(reports[0].layers, reports[1].layers, strict=True):
        assert left.by_eigenvalue == pytest.approx(right.by_eigenvalue, rel=1e-6)


def scaled(H: Tensor, network: DenseNetwork) -> Tensor:
    H = H.clone()
    block = network.layers[0].block
    H[block, block] *= 1.0001
    return H


def without_bias_coupling(H: Tensor, network: DenseNetwork) -> Tensor:
    layer = network.layers[0]
    bias = slice(layer.block.stop - layer.linear.out_features, layer.block.stop)
    H = H.clone()
    H[bias, slice(layer.block.start, bias.start)] = 0
    H[slice(layer.block.start, bias.start), bias] = 0
    return H


def with_factors_in_the_other_order(H: Tensor, network: DenseNetwork) -> Tensor:
    """Units before inputs: the weight's rows and columns permuted as vec(W^T) has them."""
    layer = network.layers[0]
    d_out, d_in = layer.linear.out_features, layer.linear.in_features
    places = torch.arange(len(H))
    places[: d_out * d_in] = torch.arange(d_out * d_in).reshape(d_out, d_in).T.reshape(-1)
    return H[places][:, places]


@pytest.mark.parametrize("tampered", [scaled, without_bias_coupling, with_factors_in_the_other_order])
def test_a_wrong_block_fails(tampered: object) -> None:
    x, y = data(6, 3, 4)
    right = examine(network([3, 5, 4]), x, y)
    wrong = replace(right, hessian=tampered(right.hessian, right))  # type: ignore[operator]
    assert not broken(dense_checks(right))
    assert ("K", "0") in {(check.statement, check.layer) for check in broken(dense_checks(wrong))}


def test_a_curvature_that_is_too_small_fails() -> None:
    """A1 and A2 notice where B_n is taken at half its size."""
    x, y = data(1, 3, 4)
    right = examine(network([3, 5, 4]), x, y)
    halved = replace(right.layers[1], curvatures=right.layers[1].curvatures / 2)
    names = {check.statement for check in broken(dense_checks(replace(right, layers=[right.layers[0], halved])))}
    assert {"K", "A1", "A2"} <= names
