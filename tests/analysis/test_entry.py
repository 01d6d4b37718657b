"""Models that are valid though they make leaves, transforms or integers of their own, against dense Hessians."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.operators import hessian
from analysis.problem import make_problem
from analysis.spectrum import eigs


class Force(nn.Module):
    """Minus nothing but the slope of an energy in its inputs, by a leaf of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


class ForceOfInputs(Force):
    """The same by the inputs themselves."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return torch.autograd.grad(self.energy(x.requires_grad_()).sum(), x, create_graph=True)[0]


class ForceByTransform(Force):
    """The same by torch.func."""

    def forward(self, x: Tensor) -> Tensor:
        slopes: Tensor = torch.func.vmap(torch.func.grad(lambda one: self.energy(one)[0]))(x)
        return slopes


class Permuted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 3)
        self.places = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.line(x[:, self.places]).tanh()
        return z


X, Y = (torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (0, 1))


def dense(model: nn.Module) -> Tensor:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in named.values()]

    def loss(theta: Tensor) -> Tensor:
        pieces = {n: t.view_as(p) for (n, p), t in zip(named.items(), theta.split(sizes), strict=True)}
        return F.mse_loss(functional_call(model, pieces, (X.clone(),)), Y)

    found: Tensor = torch.autograd.functional.hessian(loss, torch.cat([p.detach().flatten() for p in named.values()]))
    return found


@pytest.mark.parametrize("make", [Force, ForceOfInputs, ForceByTransform, Permuted])
@pytest.mark.parametrize("chunk_size", [4, None])
def test_models_that_make_their_own(make: Callable[[], nn.Module], chunk_size: int | None) -> None:
    torch.manual_seed(0)
    model = make().double()
    exact = dense(model)
    problem = make_problem(model, "mse", (X, Y), chunk_size=chunk_size)
    torch.testing.assert_close(hessian(problem)(torch.eye(problem.size, dtype=torch.float64)), exact)
    report = eigs(problem)
    assert report.eigenvalues[0].value == pytest.approx(torch.linalg.eigvalsh(exact)[-1].item(), rel=1e-5)
    first = report.layers[0]
    block = exact[: first.parameters, : first.parameters]
    assert first.eigenvalues[0].value == pytest.approx(torch.linalg.eigvalsh(block)[-1].item(), rel=1e-5)


def test_a_leaf_that_was_there_before_is_refused() -> None:
    other = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(MeasurementError, match="are no parameters of the model"):
        make_problem(nn.Linear(3, 3).double(), lambda z, y: F.mse_loss(z * other, y), (X, Y))


def test_integers_have_no_derivative() -> None:
    with pytest.raises(MeasurementError, match="places holds integers"):
        make_problem(Permuted().double(), "mse", (X, Y), parameters=["places"])


def scripted() -> nn.Module:
    found: nn.Module = torch.jit.script(nn.Linear(3, 3))
    return found


def traced() -> nn.Module:
    found: nn.Module = torch.jit.trace(nn.Linear(3, 3), X.float())
    return found


@pytest.mark.parametrize("make", [scripted, traced, lambda: nn.Sequential(scripted())])
def test_modules_of_torch_jit_are_refused_in_a_sentence(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(MeasurementError, match=r"compiled by torch\.jit"):
        make_problem(make(), "mse", (X, Y))
