"""What a user's own model and algorithm compute, in a few numbers that are kept with a run.

A run knows them by name, `package.module:function`. Where the code of that name has changed since, the run must not be
gone on with, taken for finished, or measured: these numbers would be another model's.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from flatlab.data import ImageData, normalise
from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig
from flatlab.federated.streams import seeded

OwnCode = Mapping[str, Sequence[float]]
"""Numbers by "model" and "algorithm", as far as these are a user's own; those of flatlab are known by their version."""

SAME = 1e-3
"""Largest difference, relative to the largest number, that is rounding on another machine."""

_SAMPLES, _NUMBERS, _SHIFT = 3, 64, 0.05


def model_numbers(model: nn.Module, config: RunConfig, data: ImageData) -> list[float]:
    """Outputs of a model as it was built, for a few training samples; its parameters are changed.

    They are moved by the seed's noise first: a last layer that begins at zero would hide all before it.
    """
    x = normalise(data.train.images[:_SAMPLES], data.mean, data.std, dtype=next(model.parameters()).dtype)
    training = model.training
    with torch.no_grad(), seeded(config.seed, "own code"):
        for parameter in model.parameters():
            parameter.add_(_SHIFT * torch.randn_like(parameter))
        model.eval()
        outputs = model(x)
    model.train(training)
    return [float(number) for number in outputs.flatten()[:_NUMBERS]]


def require_same_code(config: RunConfig, kept: OwnCode, now: OwnCode, what: str) -> None:
    """Raise `UsageError` where a model or algorithm computes other numbers `now` than those `kept` with `what`.

    What is in one of them alone is not known: it is of an earlier version, or was not tried.
    """
    for role in kept.keys() & now.keys():
        before, after = (torch.tensor(numbers[role], dtype=torch.float64) for numbers in (kept, now))
        alike = before.shape == after.shape and torch.allclose(
            after, before, rtol=0, atol=SAME * float(before.abs().max()) if len(before) else 0.0, equal_nan=True
        )
        if not alike:
            name = config.model if role == "model" else config.algorithm
            raise UsageError(
                f"The {role} {name} is not the one with which {what}: its code has changed, and what it computes with "
                "it. Bring that code back, or start a new run in another --out."
            )
