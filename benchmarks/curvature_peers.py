"""What the curvature benchmark multiplies: one network, and its Hessian as each library offers it."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn import functional as F

from analysis.operators import SymmetricOperator, hessian
from analysis.problem import make_problem
from flatlab.data import load_images, normalise
from flatlab.federated.models import build_model

SAMPLES = 512
BATCH = 64  # of the peers' streamed products
STREAMED_MEMORY = 80 << 20  # for ours, which then takes 66 images at a time
STEPS = 500  # of SGD, after which the weights are partly trained


@dataclass(frozen=True)
class Subject:
    """The CIFAR CNN with partly trained weights, and the images its loss is the mean over."""

    model: nn.Module
    x: Tensor  # (512, 3, 32, 32) float32
    y: Tensor  # (512,)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that require a gradient; all together 815,332 numbers."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def batches(self, size: int = BATCH) -> list[tuple[Tensor, Tensor]]:
        """The images in batches."""
        return list(zip(self.x.split(size), self.y.split(size), strict=True))

    def split(self, vector: Tensor) -> list[Tensor]:
        """(p,) in pieces shaped like the parameters."""
        pieces = vector.split([p.numel() for p in self.parameters])
        return [piece.view_as(p) for piece, p in zip(pieces, self.parameters, strict=True)]


def make_subject(steps: int = STEPS) -> Subject:
    """Train the network on 5000 CIFAR-100 images by the paper's local step, and take the first 512 of them.

    That is plain SGD with learning rate 0.1 and batches of 50, here without weight decay.
    """
    data = load_images("cifar100").subset(5000, None, 0)
    x, y = normalise(data.train.images, data.mean, data.std), data.train.labels
    torch.manual_seed(0)
    model = build_model("cifar-cnn", input_shape=(3, 32, 32), classes=100)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = x.contiguous(memory_format=torch.channels_last)
    for step in range(steps):
        at = torch.randint(len(y), (50,), generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        F.cross_entropy(model(inputs[at]), y[at]).backward()
        optimiser.step()
    optimiser.zero_grad()
    return Subject(model, x[:SAMPLES].clone(), y[:SAMPLES].clone())


def gradient(subject: Subject, size: int = SAMPLES, layout: torch.memory_format = torch.contiguous_format) -> None:
    """One gradient of the loss in batches of `size`: the unit of every table."""
    for x, y in zip(subject.x.split(size), subject.y.split(size), strict=True):
        inputs = x.contiguous(memory_format=layout)
        torch.autograd.grad(F.cross_entropy(subject.model(inputs), y), subject.parameters)


def _operator(subject: Subject, product: Callable[[Tensor], Tensor]) -> SymmetricOperator:
    size = sum(p.numel() for p in subject.parameters)
    return SymmetricOperator(
        size, torch.float32, subject.x.device, lambda rows: torch.stack([product(row) for row in rows])
    )


def flatlab_operator(subject: Subject) -> SymmetricOperator:
    """Ours, with its default memory: all graphs are kept."""
    return hessian(make_problem(subject.model, "cross_entropy", (subject.x, subject.y)))


def flatlab_streamed(subject: Subject) -> SymmetricOperator:
    """Ours, where graphs may take `STREAMED_MEMORY` bytes, so that none is kept."""
    return hessian(make_problem(subject.model, "cross_entropy", (subject.x, subject.y), memory=STREAMED_MEMORY))


def pyhessian_computer(subject: Subject, data: Any = None, loader: Any = None) -> Any:
    """PyHessian's own object on a copy of the model, since it leaves gradients behind."""
    from pyhessian import hessian as pyhessian

    model = copy.deepcopy(subject.model)
    return pyhessian(model, nn.CrossEntropyLoss(), data=data, dataloader=loader, cuda=subject.x.is_cuda)


def pyhessian_operator(subject: Subject) -> SymmetricOperator:
    """PyHessian on one batch, whose graph it keeps."""
    from pyhessian.utils import hessian_vector_product

    computer = pyhessian_computer(subject, data=(subject.x, subject.y))

    def product(v: Tensor) -> Tensor:
        return flat(hessian_vector_product(computer.gradsH, computer.params, subject.split(v)))

    return _operator(subject, product)


def pyhessian_streamed(subject: Subject) -> SymmetricOperator:
    """PyHessian over a data loader."""
    computer = pyhessian_computer(subject, loader=subject.batches())
    return _operator(subject, lambda v: flat(computer.dataloader_hv_product(subject.split(v))[1]))


def curvlinops_operator(subject: Subject, size: int = SAMPLES) -> SymmetricOperator:
    """curvlinops' Hessian."""
    from curvlinops import HessianLinearOperator

    data = subject.batches(size)
    loss = nn.CrossEntropyLoss()
    theirs = HessianLinearOperator(subject.model, loss, subject.parameters, data, check_deterministic=False)
    return _operator(subject, lambda v: theirs @ v)


def eigenthings(subject: Subject) -> Any:
    """hessian-eigenthings' own operator."""
    from hessian_eigenthings import HessianOperator, supervised_loss

    return HessianOperator(subject.model, [(subject.x, subject.y)], supervised_loss(F.cross_entropy))


def eigenthings_operator(subject: Subject) -> SymmetricOperator:
    """hessian-eigenthings' Hessian."""
    return _operator(subject, eigenthings(subject).matvec)


def jvp_operator(subject: Subject) -> SymmetricOperator:
    """torch.func's forward over reverse."""
    parameters = {name: p.detach() for name, p in subject.model.named_parameters()}

    def loss(pieces: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(subject.model, pieces, (subject.x,)), subject.y)

    def product(v: Tensor) -> Tensor:
        tangents = dict(zip(parameters, subject.split(v), strict=True))
        return flat(list(jvp(grad(loss), (parameters,), (tangents,))[1].values()))

    return _operator(subject, product)


def flat(pieces: Sequence[Tensor]) -> Tensor:
    """The vector (p,) made of `pieces`, without a graph."""
    return torch.cat([piece.detach().reshape(-1) for piece in pieces])


def installed(module: str) -> bool:
    """Whether a peer can be measured; says so where it cannot."""
    if find_spec(module) is None:
        print(f"{module} is not installed: its rows are left out (make bench installs it)")
        return False
    return True
