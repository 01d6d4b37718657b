"""FedAvg: average the clients' models.

    client   g
    server   w <- sum_sel n_i theta_i / sum_sel n_i

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (AISTATS 2017).
"""

from typing import Any

from torch import Tensor

from flatlab.federated.algorithms.base import Algorithm, Round, weighted_mean


def combine(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """w <- sum_sel n_i theta_i / sum_sel n_i."""
    return weighted_mean(round_), {}


ALGORITHM = Algorithm("fedavg", "McMahan et al., AISTATS 2017", combine)
