"""What is measured where the caller records no graphs: the same as elsewhere."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from analysis.activations import forward_pass
from analysis.density import spectral_density
from analysis.errors import MeasurementError
from analysis.flatness import flatness, sam_sharpness
from analysis.lanczos import lanczos
from analysis.layer_blocks import LayerBlocks
from analysis.objective import loss_and_gradient, loss_at
from analysis.operators import curvature_matrix, empirical_fisher, fisher, gauss_newton, hessian
from analysis.problem import Problem, make_problem
from analysis.pyhessian_backend import pyhessian_operator
from analysis.spectrum import eigs
from analysis.subsets import batch_spectra
from analysis.theory.chain import chain
from analysis.trace import hutch_plus_plus, hutchinson
from analysis.worst_case import worst_case_sharpness
from tests.analysis.test_products import dense, truth

X = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3

BLOCKS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),
    "inference_mode": torch.inference_mode,
}


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).to(dtype)


def of_blocks(problem: Problem) -> list[Tensor]:
    blocks = LayerBlocks(problem)
    return [
        *blocks({n: torch.ones(1, blocks.size(n), dtype=problem.dtype) for n in blocks.layers}).values(),
        *blocks.starts().values(),
    ]


MEASURED: dict[str, Callable[[Problem], Any]] = {
    "hessian": lambda p: dense(hessian(p)),
    "gauss-newton": lambda p: dense(curvature_matrix(p, "gauss-newton")),
    "fisher": lambda p: dense(fisher(p)),
    "empirical fisher": lambda p: dense(empirical_fisher(p)),
    "scipy": lambda p: hessian(p) @ torch.ones(p.size, dtype=p.dtype).numpy(),
    "pyhessian": lambda p: pyhessian_operator(p)(torch.ones(p.size, dtype=p.dtype)),
    "blocks": of_blocks,
    "gradient": lambda p: loss_and_gradient(p, p.point() * 1.5),
    "loss": lambda p: loss_at(p, p.point() * 1.5),
    "forward": lambda p: forward_pass(p).layers["3"].input_norm2,
    "lanczos": lambda p: lanczos(hessian(p), 2).values,
    "eigs": lambda p: [eigenvalue.value for eigenvalue in eigs(p, 2).eigenvalues],
    "hutchinson": lambda p: hutchinson(hessian(p), max_probes=5).trace.value,
    "hutch++": lambda p: hutch_plus_plus(hessian(p), 9).value,
    "density": lambda p: spectral_density(hessian(p)).density,
    "sharpness": sam_sharpness,
    "flatness": lambda p: flatness(p, max_probes=5).adaptive_sharpness,
    "worst case": lambda p: worst_case_sharpness(p, radius=0.1, steps=3, batch_size=4).values,
    "batches": lambda p: batch_spectra(p, 4, 1).values,
    "other data": lambda p: dense(hessian(p.on((X[:4], Y[:4])))),
    "another point": lambda p: dense(hessian(p.moved_to({n: 2 * x for n, x in p.parameters.items()}))),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("measured", MEASURED)
def test_measurements(measured: str, block: str, dtype: torch.dtype) -> None:
    problem = make_problem(network(dtype), "cross_entropy", (X, Y), memory=1, chunk_size=3)
    expected = MEASURED[measured](problem)
    with BLOCKS[block]():
        found = MEASURED[measured](problem)
        assert torch.is_grad_enabled() is False
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("block", BLOCKS)
def test_problems_made_there(block: str, loss: str) -> None:
    """Of a model and data that are made there, too, and of data that are read there."""
    targets = F.one_hot(Y, 3).double() if loss == "mse" else Y
    function = F.mse_loss if loss == "mse" else F.cross_entropy
    expected = truth(network(), function, X.double(), targets)
    weights = torch.ones(3, dtype=torch.float64)
    with BLOCKS[block]():
        model, x = network(), 1.0 * X.double()
        problems = [
            make_problem(network(), loss, (X, targets)),
            make_problem(model, loss, (x, 1 * targets), memory=1, chunk_size=3),
            make_problem(model, loss, DataLoader(TensorDataset(x, targets), 4)),
        ]
        if loss != "mse":
            problems.append(make_problem(model, nn.CrossEntropyLoss(1 * weights), (x, targets)))
        inside = [dense(matrix(problem)) for problem in problems for matrix in (hessian, gauss_newton)][::2]
    for problem, matrix in zip(problems, inside, strict=True):
        torch.testing.assert_close(matrix, expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(dense(hessian(problem)), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("block", BLOCKS)
def test_graphs_that_are_kept_serve_inside_and_outside(block: str) -> None:
    problem = make_problem(network(), "cross_entropy", (X, Y))
    operator, v = hessian(problem), torch.ones(problem.size, dtype=torch.float64)
    with BLOCKS[block]():
        inside = operator(v)
    outside, expected = operator(v), hessian(problem)(v)
    torch.testing.assert_close(inside, expected)
    torch.testing.assert_close(outside, expected)


def test_a_tensor_of_inference_mode_that_a_loss_holds_is_named() -> None:
    with torch.inference_mode():
        factors = torch.ones(3)
    with pytest.raises(MeasurementError, match=r"made under torch\.inference_mode"):
        make_problem(network(), lambda z, y: F.cross_entropy(factors * z, y), (X, Y))


def test_the_statements_of_theory() -> None:
    problem = make_problem(network(), "cross_entropy", (X, Y))
    with torch.no_grad():
        found = chain(problem)
    assert found.top == chain(problem).top
