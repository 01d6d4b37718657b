"""FedCM: the clients mix the direction in which the server last went into every step.

    client   alpha g + (1 - alpha) m                                inside the clip
    server   m <- -D / (K eta_t)
             w <- mean_sel theta_i

Source: Xu et al., "FedCM: Federated Learning with Client-level Momentum" (2021); alpha as in FL-Simulator
(woodenchild95). The FedNSAM authors' code clips g before mixing.
"""

from typing import Any

from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms.base import Algorithm, Client, Hyper, Round, Terms


class FedCMHyper(Hyper):
    """`alpha`, the share of the client's own gradient."""

    alpha: float = Field(0.1, gt=0, le=1)


def terms(client: Client[FedCMHyper]) -> Terms:
    """alpha g + (1 - alpha) m."""
    alpha = client.hyper.alpha
    return Terms(gradient=alpha, constant=(1 - alpha) * client.server["m"])


def combine(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """w <- mean_sel theta; m <- -D / (K eta_t)."""
    return round_.theta.mean(0), {"m": next_direction(round_)}


def next_direction(round_: Round[Any]) -> Tensor:
    """-D / (K eta_t), shape (P,): the mean gradient that the round's steps stand for."""
    return (round_.w - round_.theta.mean(0)) / (round_.K * round_.eta)


ALGORITHM = Algorithm("fedcm", "Xu et al., 2021", combine, FedCMHyper, server=("m",), terms=terms, weighted=False)
