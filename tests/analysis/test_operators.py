"""Every operator against dense matrices in float64, over a table of models, losses and reductions."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh, lobpcg
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from analysis.layer_blocks import LayerBlocks
from analysis.operators import SymmetricOperator, block, gauss_newton, hessian
from analysis.problem import make_problem

CASES = {
    "architecture": st.sampled_from(["mlp", "cnn", "residual", "attention", "tied"]),
    "phi": st.sampled_from(["relu", "tanh", "gelu"]),
    "loss": st.sampled_from(["cross_entropy", "squared", "smoothed"]),
    "reduction": st.sampled_from(["mean", "sum"]),
    "seed": st.integers(0, 1000),
}


def dense(operator: SymmetricOperator) -> Tensor:
    return operator(torch.eye(operator.size, dtype=operator.torch_dtype))


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-11 * (1 + b.abs().max()))


@given(**CASES, chunk_size=st.sampled_from([2, 3, None]), memory=st.sampled_from([1, 20_000, 1 << 30]))
@settings(max_examples=9, deadline=None)
def test_hessian_is_the_dense_one(
    make_case: Any, dense_hessian: Any, chunk_size: int | None, memory: int, **case_of: Any
) -> None:
    case = make_case(**case_of)
    operator = hessian(case.problem(chunk_size=chunk_size, memory=memory))
    expected = dense_hessian(case)
    assert close(dense(operator), expected)
    v = torch.ones(operator.size, dtype=torch.float64)
    assert close(operator(v), expected @ v)  # the graphs survive, or are built again


@pytest.mark.parametrize("make", [hessian, gauss_newton])
@pytest.mark.parametrize("memory", [1, 20_000, 1 << 30])
def test_iterations_start_from_the_gradient_also_where_graphs_are_not_kept(
    make_case: Any, make: Any, memory: int
) -> None:
    """Graphs that are thrown away after a product do not compute the values of convolutions' weight gradients."""
    case = make_case("cnn", phi="gelu")
    problem = case.problem(chunk_size=2, memory=memory)
    operator = make(problem)
    before = operator(torch.ones(operator.size, dtype=torch.float64))
    parameters = [p.requires_grad_() for p in case.model.double().parameters()]
    expected = torch.autograd.grad(case.loss(case.model(case.inputs.double()), case.targets), parameters)
    torch.testing.assert_close(operator.start(), torch.cat([g.flatten() for g in expected])[:, None])
    torch.testing.assert_close(operator(torch.ones(operator.size, dtype=torch.float64)), before)


def test_a_graph_that_is_not_kept_is_freed_before_the_next_is_built() -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most: list[int] = []

    class Mark:
        pass

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.mark = Mark()  # lives as long as the graph
            alive.add(ctx.mark)
            most.append(len(alive))
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0]

    class Model(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = Watched.apply(super().forward(x))  # type: ignore[no-untyped-call]
            return y

    torch.manual_seed(0)
    model = Model(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    problem = make_problem(model, "cross_entropy", (torch.randn(6, 2), torch.ones(6).long()), memory=1, chunk_size=2)
    assert not alive
    for make in (hessian, gauss_newton):
        most.clear()
        make(problem)(torch.ones(problem.size))
        assert most == [1, 1, 1]
    blocks = LayerBlocks(problem)
    most.clear()
    blocks({"0": torch.ones(1, 9)})
    assert most == [1, 1, 1]


@given(**CASES)
@settings(max_examples=10, deadline=None)
def test_gauss_newton_is_the_dense_one(make_case: Any, **case_of: Any) -> None:
    case = make_case(**case_of)
    problem = case.problem(chunk_size=3)
    parameters = dict(problem.parameters)
    x = case.inputs.double()

    def outputs(theta: Tensor) -> Tensor:
        pieces = dict(zip(parameters, problem.split(theta), strict=True))
        with sdpa_kernel(SDPBackend.MATH):
            z: Tensor = functional_call(problem.model, pieces, (x,))
        return z

    jacobian: Any = jacrev(outputs)(problem.point())  # (samples, classes, p)
    z = outputs(problem.point()).detach()
    curvature: Any = torch.autograd.functional.hessian(lambda z: case.loss(z, case.targets), z)
    expected = torch.einsum("ncp,ncmd,mdq->pq", jacobian, curvature, jacobian)
    actual = dense(gauss_newton(problem))
    assert close(actual, expected)
    assert torch.linalg.eigvalsh(actual)[0] >= -1e-10


def test_gauss_newton_of_a_linear_model_is_its_hessian(make_case: Any) -> None:
    case = make_case("mlp")
    last = case.problem(parameters=["5.weight", "5.bias"])
    assert close(dense(gauss_newton(last)), dense(hessian(last)))


def test_block_is_the_principal_submatrix(make_case: Any, dense_hessian: Any) -> None:
    case = make_case("mlp", phi="tanh")
    problem = case.problem()
    names = ["3.bias", "1.weight"]
    at, positions = 0, []
    for name, parameter in problem.parameters.items():
        positions += list(range(at, at + parameter.numel())) if name in names else []
        at += parameter.numel()
    assert close(dense(block(problem, names)), dense_hessian(case)[positions][:, positions])


def test_float32_products_are_exact_to_rounding(make_case: Any, dense_hessian: Any) -> None:
    case = make_case("cnn", phi="gelu")
    operator = hessian(case.problem(dtype=torch.float32, chunk_size=2))
    v = torch.randn(operator.size)
    product = operator(v)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), dense_hessian(case) @ v.double(), rtol=1e-4, atol=1e-5)


def test_blocks_of_vectors_count_and_keep_their_shape(make_case: Any) -> None:
    operator = hessian(make_case().problem())
    v = torch.randn(operator.size, 3, dtype=torch.float64)
    columns = torch.stack([operator(v[:, i]) for i in range(3)], dim=1)
    torch.testing.assert_close(operator(v), columns)
    assert operator.products == 6
    with pytest.raises(ValueError, match="shape"):
        operator(v.T)


def test_parameters_without_effect_have_zero_rows(make_case: Any) -> None:
    case = make_case("mlp")
    case.model.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    product = hessian(case.problem())(torch.ones(case.problem().size, dtype=torch.float64))
    assert (product[:3] == 0).all()  # the model's own parameters come first
    assert (product[3:] != 0).any()


def test_frozen_parameters_are_left_out(make_case: Any) -> None:
    case = make_case("mlp")
    case.model[1].requires_grad_(False)
    assert "1.weight" not in case.problem().parameters
    assert case.problem(parameters=["1.weight"]).size == 80


def test_scipy_runs_unchanged(make_case: Any, dense_hessian: Any) -> None:
    case = make_case("residual", phi="tanh")
    operator = hessian(case.problem())
    expected = torch.linalg.eigvalsh(dense_hessian(case)).numpy()
    np.testing.assert_allclose(np.sort(eigsh(operator, k=3, which="LA")[0]), expected[-3:], atol=1e-8)
    start = np.random.default_rng(0).normal(size=(operator.size, 2))
    values, _ = lobpcg(operator, start, largest=True, tol=1e-8, maxiter=500)
    np.testing.assert_allclose(np.sort(values), expected[-2:], atol=1e-6)
