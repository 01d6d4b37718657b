"""The published numbers, as data.

Source: M. Yashwanth, G. K. Nayak, H. Rangwani, A. Singh, R. V. Babu and A. Chakraborty, "Minimizing Layerwise
Activation Norm Improves Generalization in Federated Learning", WACV 2024 (arXiv 2512.08314). Accuracies are the means
of three seeds after 500 rounds, without a published spread; eigenvalues and traces are those of the global model; the
accuracy that `rounds` counts towards is not published.

One number does not fit its neighbours: FedAvg on CIFAR-100 at Dirichlet 0.3 is printed as 49.9 %, beside 40.39 % at 0.6
and 39.4 % on IID data. It is kept as printed.
"""

import csv
from functools import cache
from importlib.resources import files
from typing import Literal

Quantity = Literal["accuracy", "top_eigenvalue", "trace", "rounds"]

PAPER_ROUNDS = 500
"""After which its accuracies are taken."""

SOURCE = (
    "Yashwanth et al., “Minimizing Layerwise Activation Norm Improves Generalization in Federated Learning”, WACV 2024"
)

_COLUMNS: dict[Quantity, tuple[str, str]] = {
    "accuracy": ("accuracy.csv", "accuracy_percent"),
    "top_eigenvalue": ("curvature.csv", "top_eigenvalue"),
    "trace": ("curvature.csv", "trace"),
    "rounds": ("rounds.csv", "rounds_to_target"),
}


def published(quantity: Quantity, dataset: str, partition: str, algorithm: str, man: bool) -> str | None:
    """Return the number as it is printed: percent, eigenvalue, trace, or rounds ("500+": not reached); None if none is.

    `dataset` is "cifar100" or "tiny-imagenet"; `partition` is "iid" or "dirichlet-<delta>".
    """
    return _numbers(quantity).get((dataset, partition, algorithm, man))


@cache
def _numbers(quantity: Quantity) -> dict[tuple[str, str, str, bool], str]:
    name, column = _COLUMNS[quantity]
    with files(__name__).joinpath(name).open(encoding="utf-8") as file:
        return {
            (row["dataset"], row["partition"], row["algorithm"], row["man"] == "1"): row[column]
            for row in csv.DictReader(file)
        }
