"""Loss, Hessian and its blocks of a checkpoint's small MLP, written out, and how estimates are held to them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from flatlab.data import normalise
from flatlab.federated.world import World
from flatlab.runs.checkpoint import load_checkpoint, rebuild

Run = Callable[..., dict[str, Any]]


class Dense:
    """Loss, Hessian and its blocks of an MLP at given samples, written out."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.parameters = {name: p.detach() for name, p in model.named_parameters()}
        sizes = [p.numel() for p in self.parameters.values()]
        theta = torch.cat([p.reshape(-1) for p in self.parameters.values()])

        def loss(theta: Tensor) -> Tensor:
            pieces = theta.split(sizes)
            named = {name: piece.view_as(p) for (name, p), piece in zip(self.parameters.items(), pieces, strict=True)}
            return F.cross_entropy(functional_call(model, named, (x,)), y)

        self.theta, self.loss_at = theta, loss
        self.loss = float(loss(theta))
        self.hessian = torch.autograd.functional.hessian(loss, theta)
        self.gradient = torch.autograd.functional.jacobian(loss, theta)
        ends = np.cumsum([0, *sizes])
        self.places = {name: slice(*ends[i : i + 2]) for i, name in enumerate(self.parameters)}

    def eigenvalues(self, prefix: str = "") -> Tensor:
        """Of the block of all parameters whose names begin with `prefix`, descending."""
        values: Tensor = torch.linalg.eigvalsh(self.block(prefix)).flip(0)
        return values

    def block(self, prefix: str) -> Tensor:
        places = [torch.arange(len(self.theta))[p] for name, p in self.places.items() if name.startswith(prefix)]
        chosen = torch.cat(places)
        block: Tensor = self.hessian[chosen][:, chosen]
        return block


def dense(path: Path, world: World, where: Any) -> Dense:
    model, data = rebuild(load_checkpoint(path))
    x = normalise(data.train.images[where], data.mean, data.std, dtype=torch.float64)
    return Dense(model.double(), x, data.train.labels[where])


def tops(entry: dict[str, Any]) -> list[float]:
    return [value["value"] for value in entry["eigenvalues"]]


def assert_within(estimate: dict[str, float], exact: Tensor) -> None:
    """Five standard errors: one in a million if the estimate is right."""
    assert abs(estimate["value"] - float(exact)) <= 5 * estimate["standard_error"]
    assert estimate["standard_error"] < 0.5 * abs(float(exact))
