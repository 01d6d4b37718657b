"""How names of our own are spelled, whatever the letters in which they are given, and numbers in names of runs."""

from typing import Any

from flatlab.data.bundled import BUNDLED
from flatlab.data.known import KNOWN
from flatlab.federated.models import MODELS
from flatlab.functions import names_function

NAMES = ("algorithm", "partition", "augmentation", "activation", "sampling", "report", "dtype", "precision")
"""Fields whose values are names of our own, in small letters."""


def in_words(number: float) -> str:
    """`number` so that another one is spelled otherwise, in six digits where they do: 0.3, 100 and 0.30000001."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def in_small_letters(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with names of our own as we spell them: FedAvg is fedavg, CIFAR10 is cifar10."""
    small = {
        name: value.lower()
        for name, value in fields.items()
        if name in NAMES and isinstance(value, str) and not names_function(value)
    }
    for name, known in {"dataset": (*BUNDLED, *KNOWN), "model": ("auto", *MODELS)}.items():
        value = fields.get(name)
        if isinstance(value, str) and value.lower() in known:
            small[name] = value.lower()
    return fields | small
