"""Models that differentiate themselves, as gradient penalties and forces do: Hessians take their third derivatives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from analysis.errors import MeasurementError
from analysis.operators import gauss_newton
from analysis.problem import make_problem
from analysis.spectrum import eigs
from tests.analysis.test_products import assert_right, dense, truth


class Attending(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return torch.tanh(super().forward(x, x, x, need_weights=False)[0])


NETS: dict[str, Callable[[], list[nn.Module]]] = {
    "one dimension": lambda: [nn.Flatten(2), nn.Conv1d(1, 2, 9), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1)],
    "convolution": lambda: [nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1)],
    "large images": lambda: [nn.Conv2d(1, 2, 3, padding=2), nn.Tanh(), nn.Flatten(), nn.Linear(72, 1)],
    "three dimensions": lambda: [
        *(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 2, (1, 3, 3)), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(8, 1)),
    ],
    "relu": lambda: [nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1)],
    "pooling": lambda: [
        *(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(2, 2, 2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(18, 1)),
    ],
    "normalisations": lambda: [
        *(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 1)),
    ],
    "attention": lambda: [nn.Flatten(1, 2), Attending(4, 2, batch_first=True), nn.Flatten(), nn.Linear(16, 1)],
}


class WithSlopes(nn.Module):
    """The outputs of a net and their gradient in the inputs."""

    def __init__(self, net: list[nn.Module]) -> None:
        super().__init__()
        self.net = nn.Sequential(*net)

    def forward(self, x: Tensor) -> Any:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            outputs = self.net(x)
            (slopes,) = torch.autograd.grad(outputs.sum(), x, create_graph=True)
        return outputs, slopes


class Forces(WithSlopes):
    def forward(self, x: Tensor) -> Tensor:
        slopes: Tensor = super().forward(x)[1]
        return slopes.neg().flatten(1)


def penalised(outputs: Any, targets: Tensor) -> Tensor:
    """The squared error and a gradient penalty (Gulrajani et al. 2017)."""
    values, slopes = outputs
    penalty: Tensor = (slopes.flatten(1).norm(dim=1) - 1).square().mean()
    return F.mse_loss(values, targets) + penalty


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(6, *shape, generator=generator, dtype=torch.float64) for shape in ((1, 4, 4), (1,)))
    return x, y


@pytest.mark.parametrize("net", NETS)
def test_gradient_penalties(net: str, data: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(2)
    model = WithSlopes(NETS[net]()).double().eval()
    with sdpa_kernel(SDPBackend.MATH):
        expected = truth(model, penalised, *data)
    problem = assert_right(model, penalised, *data, expected)
    assert eigs(problem, 1).eigenvalues[0].value == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]), rel=1e-3)


def test_a_third_derivative_that_torch_has_wrong_is_refused(data: tuple[Tensor, Tensor]) -> None:
    """That of layer normalisation, which takes mean and deviation for constants (torch 2.13)."""
    torch.manual_seed(2)
    net = [nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1)]
    with pytest.raises(MeasurementError, match="in torch or in a function of your own"):
        make_problem(WithSlopes(net).double(), penalised, data)


@pytest.mark.parametrize("net", ["convolution", "relu", "pooling"])
def test_forces(net: str, data: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(2)
    model, x = Forces(NETS[net]()).double(), data[0]
    targets = x.flatten(1)
    problem = assert_right(model, F.mse_loss, x, targets)
    names = list(problem.parameters)

    def forces(theta: Tensor) -> Tensor:
        moved: Tensor = functional_call(model, dict(zip(names, problem.split(theta), strict=True)), (x,))
        return moved.flatten()

    jacobian = torch.autograd.functional.jacobian(forces, problem.point())
    expected = 2 / targets.numel() * jacobian.T @ jacobian
    matrix = dense(gauss_newton(make_problem(model, "mse", (x, targets), chunk_size=2)))
    torch.testing.assert_close(matrix, expected, rtol=1e-9, atol=1e-11)
