"""Toy networks on the bundled digits: many of one architecture, under several penalties, trained as one stack."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.strata import stratified_choice

LR, WEIGHT_DECAY, BATCH = 0.1, 1e-3, 50

Activation = Literal["relu", "tanh"]


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
    """Coefficients of MAN and of the logits' mean square."""

    zeta: float = 0.0
    zeta_logits: float = 0.0


def load_toys(window: int = 1) -> Toys:
    """scikit-learn's 1797 digits, a fifth of each class for testing; 8 x 8 pixels averaged over `window` x `window`.

    The pixels are those of 8-bit images, less their mean and by their standard deviation, 0.3054 and 0.3760 of 1.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    y = torch.from_numpy(digits.target.astype(np.int64))
    images = torch.from_numpy(np.round(digits.images * (255 / 16))).unsqueeze(1)
    x = F.avg_pool2d((images - 255 * 0.3054) * (1 / (255 * 0.3760)), window)
    held_out = torch.zeros(len(y), dtype=torch.bool)
    held_out[torch.from_numpy(stratified_choice(y.numpy(), len(y) // 5, np.random.default_rng(0)))] = True
    return Toys(x[~held_out], y[~held_out], x[held_out], y[held_out])


def new_toy(toys: Toys, hidden: Sequence[int], activation: Activation, seed: int) -> nn.Sequential:
    """A perceptron with ten logits in float64, initialised from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of a GPU the generator stays as the caller has it
        widths = [toys.x[0].numel(), *hidden]
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
            layers[f"fc{i}"] = nn.Linear(fan_in, fan_out)
            layers[f"{activation}{i}"] = nn.ReLU() if activation == "relu" else nn.Tanh()
        layers[f"fc{len(widths)}"] = nn.Linear(widths[-1], 10)
        return nn.Sequential(layers).double()


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
        batch = torch.randint(len(toys.y), (BATCH,), generator=_batch_generator(step))
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


def _batch_generator(step: int) -> torch.Generator:
    """A generator that depends on the step alone, with a seed as well mixed as a hash."""
    digest = hashlib.blake2b(repr((0, "toy batch", step)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def accuracy(model: nn.Module, toys: Toys) -> float:
    """Share of the test images that are classified rightly."""
    with torch.no_grad():
        return float((model(toys.test_x).argmax(1) == toys.test_y).double().mean())
