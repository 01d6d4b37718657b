"""Toy networks on the bundled digits: many of one architecture, under several penalties, trained as one stack."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatlab.data import Split, load_images, normalise
from flatlab.models import Activation, mlp
from flatlab.streams import stream

LR, WEIGHT_DECAY, BATCH = 0.1, 1e-3, 50


@dataclass(frozen=True)
class Toys:
    """Digits in float64, as images or averaged over windows."""

    x: Tensor  # (N, 1, h, w)
    y: Tensor  # (N,)
    test_x: Tensor
    test_y: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(1, h, w)."""
        channels, height, width = self.x.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Penalty:
    """Coefficients of MAN (flatlab.man) and of the logits' mean square."""

    zeta: float = 0.0
    zeta_logits: float = 0.0


def load_toys(window: int = 1) -> Toys:
    """The digits, 8 x 8 pixels averaged over `window` x `window`."""
    data = load_images("digits")

    def inputs(split: Split) -> Tensor:
        return F.avg_pool2d(normalise(split.images, data.mean, data.std, dtype=torch.float64), window)

    return Toys(inputs(data.train), data.train.labels, inputs(data.test), data.test.labels)


def new_toy(toys: Toys, hidden: Sequence[int], activation: Activation, seed: int) -> nn.Sequential:
    """A perceptron with ten logits in float64, initialised from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mlp(toys.shape, 10, hidden, activation).double()


def train_stack(models: Sequence[nn.Sequential], penalties: Sequence[Penalty], toys: Toys, steps: range) -> None:
    """Train the models in place, all on the same batches of 50: SGD at rate 0.1 with weight decay 1e-3.

    Models of one architecture make one stack of matrices (K, ...). `steps` numbers the steps; training on in two calls
    is training in one.
    """
    linears = [[module for module in model if isinstance(module, nn.Linear)] for model in models]
    stack = [
        torch.stack([getattr(layers[i], kind).detach() for layers in linears]).requires_grad_()
        for i in range(len(linears[0]))
        for kind in ("weight", "bias")
    ]
    zeta = torch.tensor([penalty.zeta for penalty in penalties], dtype=torch.float64)
    zeta_logits = torch.tensor([penalty.zeta_logits for penalty in penalties], dtype=torch.float64)
    for step in steps:
        batch = torch.randint(len(toys.y), (BATCH,), generator=stream(0, "toy batch", step))
        objectives = stacked_objective(models[0], stack, toys.x[batch], toys.y[batch], zeta, zeta_logits)
        gradients = torch.autograd.grad(objectives.sum(), stack)
        with torch.no_grad():
            for parameter, gradient in zip(stack, gradients, strict=True):
                parameter.mul_(1 - LR * WEIGHT_DECAY).sub_(LR * gradient)
    with torch.no_grad():
        for k, layers in enumerate(linears):
            for i, layer in enumerate(layers):
                layer.weight.copy_(stack[2 * i][k])
                layer.bias.copy_(stack[2 * i + 1][k])


def stacked_objective(
    form: nn.Sequential, stack: Sequence[Tensor], x: Tensor, y: Tensor, zeta: Tensor, zeta_logits: Tensor
) -> Tensor:
    """f + zeta/2 R + zeta_logits/2 mean(z^2) of each of K networks of one `form`, (K,).

    `stack` holds weight (K, d_out, d_in) and bias (K, d_out) of every layer in turn.
    """
    a = x.flatten(1).expand(len(zeta), -1, -1)
    R = torch.zeros_like(zeta)
    matrices = iter(stack)
    for module in list(form)[1:]:
        if isinstance(module, nn.Linear):
            weight, bias = next(matrices), next(matrices)
            a = torch.baddbmm(bias[:, None], a, weight.transpose(1, 2))
        else:
            a = module(a)
            R = R + a.square().mean((1, 2))
    f = F.cross_entropy(a.transpose(1, 2), y.expand(len(zeta), -1), reduction="none").mean(1)
    return f + zeta / 2 * R + zeta_logits / 2 * a.square().mean((1, 2))


def accuracy(model: nn.Module, toys: Toys) -> float:
    """Share of the test images that are classified rightly."""
    with torch.no_grad():
        return float((model(toys.test_x).argmax(1) == toys.test_y).double().mean())
