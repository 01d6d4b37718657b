"""The CIFAR network's Hessian and its top eigenvalues as PyHessian, curvlinops and SciPy compute them."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh, lobpcg
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.eigenpairs import Eigenpairs
from analysis.lanczos import lanczos
from analysis.layer_blocks import LayerBlocks
from analysis.operators import SymmetricOperator, hessian
from analysis.problem import Problem, make_problem
from analysis.pyhessian_backend import pyhessian_operator
from analysis.spectrum import layer_eigenpairs
from flatlab.federated.models import build_model


@dataclass(frozen=True)
class Trained:
    model: nn.Module
    x: Tensor
    y: Tensor
    problem: Problem
    operator: SymmetricOperator
    top: Eigenpairs


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A few steps on a few random images, after which the top of the spectrum stands apart."""
    torch.manual_seed(0)
    model = build_model("cifar-cnn", input_shape=(3, 32, 32), classes=10)
    x, y = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(15):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    problem = make_problem(model, "cross_entropy", (x, y), dtype=torch.float64)
    operator = hessian(problem)
    return Trained(model.double(), x.double(), y, problem, operator, lanczos(operator, 2, tol=1e-6))


def test_pyhessian(trained: Trained) -> None:
    v = torch.randn(trained.problem.size, dtype=torch.float64)
    torch.testing.assert_close(trained.operator(v), pyhessian_operator(trained.problem)(v))


@pytest.mark.long
def test_pyhessians_own_eigenvalue_is_below_ours(trained: Trained) -> None:
    """Its iteration stops on the change of the eigenvalue, which it approaches from below."""
    from pyhessian import hessian as pyhessian

    computer = pyhessian(trained.model, nn.CrossEntropyLoss(), data=(trained.x, trained.y), cuda=False)
    (theirs,), _ = computer.eigenvalues(maxIter=300, tol=1e-6)
    ours = trained.top.values[0].item()
    assert theirs <= ours * (1 + 1e-9)
    assert theirs == pytest.approx(ours, rel=1e-2)


def test_curvlinops(trained: Trained) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    parameters = [p.requires_grad_() for p in trained.model.parameters()]
    batches = [(trained.x[:10], trained.y[:10]), (trained.x[10:], trained.y[10:])]  # of unequal size
    theirs = curvlinops.HessianLinearOperator(trained.model, nn.CrossEntropyLoss(), parameters, batches)
    v = torch.randn(trained.problem.size, dtype=torch.float64)
    torch.testing.assert_close(trained.operator(v), theirs @ v)


def test_eigsh(trained: Trained) -> None:
    values = np.sort(eigsh(trained.operator, 2, which="LA", tol=1e-6)[0])[::-1]
    np.testing.assert_allclose(trained.top.values, values, rtol=1e-9)


@pytest.mark.long
def test_lobpcg(trained: Trained) -> None:
    start = np.random.default_rng(0).normal(size=(trained.problem.size, 2))
    values, _ = lobpcg(trained.operator, start, largest=True, tol=1e-3, maxiter=60)
    assert values.max() == pytest.approx(trained.top.values[0].item(), rel=1e-4)


@pytest.mark.long
def test_eigsh_on_layers(trained: Trained) -> None:
    blocks = LayerBlocks(trained.problem)
    for name, pairs in layer_eigenpairs(trained.problem, tol=1e-5).items():
        (value,) = eigsh(blocks.operator(name), 1, which="LA", tol=1e-6)[0]
        assert pairs.converged.all()
        assert pairs.values[0].item() == pytest.approx(value, rel=1e-8)
