"""What a user's own model and algorithm compute, in a few numbers that are kept with a run.

A run knows them by name, `package.module:function`. Where the code of that name has changed since, the run must not be
gone on with, taken for finished, or measured: these numbers would be another model's.
"""

import torch

from analysis.model_copy import differentiable
from flatlab.data import ImageData
from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig
from flatlab.federated.streams import seeded
from flatlab.federated.world import DTYPES, OwnCode, typed_model

MODEL, ALGORITHM = "model at drawn inputs", "algorithm"
"""Whose numbers they are; what was once kept as "model" was of samples, which nodes of a federation do not share."""

SAME = 1e-3
"""Largest difference, relative to the largest number, that is rounding on another machine."""

_SAMPLES, _NUMBERS, _SHIFT = 3, 64, 0.05


def model_numbers(config: RunConfig, data: ImageData) -> list[float]:
    """Outputs of the run's model for a few drawn inputs, with its initial parameters moved by the seed's noise.

    Drawn, since the nodes of a federation have samples of their own alone; tokens are all 1. Without noise a last layer
    that begins at zero would hide all before it.
    """
    model, images = typed_model(config, data), data.train.images
    shape = _SAMPLES, *data.input_shape
    tokens = not data.mean and not images.is_floating_point()
    model.eval()
    with torch.no_grad(), seeded(config.seed, "own code"):
        x = torch.ones(shape, dtype=images.dtype) if tokens else torch.randn(shape, dtype=DTYPES[config.dtype])
        for _, parameter in differentiable(model):
            parameter.add_(_SHIFT * torch.randn_like(parameter))
        outputs = model(x)
    return [float(number) for number in outputs.flatten()[:_NUMBERS]]


ELSEWHERE = "Bring that code back, or start a new run in another --out."


def require_same_code(config: RunConfig, kept: OwnCode, now: OwnCode, what: str, remedy: str = ELSEWHERE) -> None:
    """Raise `UsageError` where a model or algorithm computes other numbers `now` than those `kept` with `what`.

    What is in one of them alone is not known: it is of an earlier version, or was not tried.
    """
    for role in kept.keys() & now.keys():
        before, after = (torch.tensor(numbers[role], dtype=torch.float64) for numbers in (kept, now))
        alike = before.shape == after.shape and torch.allclose(
            after, before, rtol=0, atol=SAME * float(before.abs().max()) if len(before) else 0.0, equal_nan=True
        )
        if not alike:
            code = f"model {config.model}" if role == MODEL else f"algorithm {config.algorithm}"
            raise UsageError(
                f"The {code} is not the one with which {what}: its code has changed, and what it computes with "
                f"it. {remedy}"
            )
