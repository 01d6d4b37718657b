"""One table of small models and losses, and the dense Hessian that every estimator is held to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from analysis.problem import Problem, make_problem

SAMPLES = 7
CLASSES = 3


class Residual(nn.Module):
    def __init__(self, phi: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.GroupNorm(3, 3)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.phi = phi
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.phi(self.norm(self.first(x)))
        x = x + self.phi(self.second(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Attention(nn.Module):
    def __init__(self, phi: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.phi = phi
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.reshape(len(x), 4, 4))
        x = self.norm(x + self.attend(x, x, x, need_weights=False)[0])
        logits: Tensor = self.head(self.phi(x).mean(1))
        return logits


class Tied(nn.Module):
    """`back` shares its weight with `inner`, and `enter`'s weight is used outside its module too."""

    def __init__(self, phi: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.back = nn.Linear(5, 5)
        self.back.weight = self.inner.weight
        self.enter = nn.Linear(16, 5)
        self.phi = phi
        self.head = nn.Linear(5, CLASSES)
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.phi(self.enter(x.flatten(1)))
        x = self.phi(self.back(self.phi(self.inner(x)))) * self.scale
        logits: Tensor = self.head(x + F.linear(x, self.enter.weight[:, :5]))
        return logits


def mlp(phi: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), phi, nn.Linear(5, 4), phi, nn.Linear(4, CLASSES))


def cnn(phi: nn.Module) -> nn.Module:
    body = [nn.Conv2d(1, 3, 3), phi, nn.MaxPool2d(2), nn.Conv2d(3, 4, 1), phi]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(4, CLASSES))


ARCHITECTURES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "residual": Residual,
    "attention": Attention,
    "tied": Tied,
}
NONLINEARITIES: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def _smoothed(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    return F.cross_entropy(outputs, targets, label_smoothing=0.2, reduction=reduction)


def _squared(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    return F.mse_loss(outputs, F.one_hot(targets, CLASSES).to(outputs), reduction=reduction)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "squared": _squared,
    "smoothed": _smoothed,
}


@dataclass(frozen=True)
class Case:
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Callable[[Any, Tensor], Tensor]
    reduction: str

    def problem(self, **options: Any) -> Problem:
        data = options.pop("data", (self.inputs, self.targets))
        options.setdefault("dtype", torch.float64)
        options.setdefault("reduction", self.reduction)
        return make_problem(self.model, self.loss, data, **options)


def _make_case(
    architecture: str = "mlp", phi: str = "relu", loss: str = "cross_entropy", reduction: str = "mean", seed: int = 0
) -> Case:
    torch.manual_seed(seed)
    model = ARCHITECTURES[architecture](NONLINEARITIES[phi]())
    inputs = torch.randn(SAMPLES, 1, 4, 4)
    targets = torch.randint(CLASSES, (SAMPLES,))
    chosen = LOSSES[loss]
    return Case(model, inputs, targets, lambda z, y: chosen(z, y, reduction=reduction), reduction)


def _dense_hessian(case: Case) -> Tensor:
    """d^2 L / d theta^2 over all parameters, by autograd on the whole batch at once, without any of our code."""
    model = case.model.double()
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def loss(theta: Tensor) -> Tensor:
        pieces = theta.split(sizes)
        replaced = {name: piece.view_as(p) for (name, p), piece in zip(parameters.items(), pieces, strict=True)}
        return case.loss(functional_call(model, replaced, (case.inputs.double(),)), case.targets)

    theta = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    with sdpa_kernel(SDPBackend.MATH):
        matrix: Tensor = torch.autograd.functional.hessian(loss, theta)
    return matrix


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    return _make_case


@pytest.fixture(scope="session")
def dense_hessian() -> Callable[[Case], Tensor]:
    return _dense_hessian


@pytest.fixture(scope="session")
def architectures() -> list[str]:
    return list(ARCHITECTURES)


@pytest.fixture(scope="session")
def make_matrix() -> Callable[..., Tensor]:
    """A symmetric matrix with given eigenvalues and random eigenvectors."""

    def make(eigenvalues: Any, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
        values = torch.as_tensor(eigenvalues, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(values), len(values), dtype=torch.float64, generator=generator)
        rotation = torch.linalg.qr(noise).Q
        matrix: Tensor = (rotation * values) @ rotation.T
        return matrix.to(dtype)

    return make
