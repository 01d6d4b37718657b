"""FedACG: the server sends out its model with a momentum already taken, and clients stay near that.

    start    w~ = w + gamma m
    client   beta (theta - w~)                                      inside the clip
    server   w <- mean_sel theta_i
             m <- gamma m + D                                       (D from w~, so that w moves by the new m)

Source: Kim et al., "Communication-Efficient Federated Learning with Accelerated Client Gradient" (CVPR 2024), whose
code has a proximal loss of 1e-3 |theta - w~|^2, hence beta = 2e-3; its runs on CIFAR-100 have 5 % participation and a
learning rate that falls by 0.995 a round, and within it from epoch to epoch.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms.base import Algorithm, Client, Hyper, Round, Terms


class FedACGHyper(Hyper):
    """`gamma`, the momentum, and `beta`, the weight of the proximal term."""

    gamma: float = Field(0.85, ge=0, lt=1)
    beta: float = Field(2e-3, ge=0)


def start(w: Tensor, server: Mapping[str, Tensor], hyper: Any, t: int) -> Tensor:
    """w~ = w + gamma m."""
    ahead: Tensor = w + hyper.gamma * server["m"]
    return ahead


def terms(client: Client[FedACGHyper]) -> Terms:
    """beta (theta - w~)."""
    return Terms(proximal=client.hyper.beta, constant=-client.hyper.beta * client.w)


def combine(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """w <- mean_sel theta; m <- gamma m + mean_sel (theta - w~)."""
    w = round_.theta.mean(0)
    D = w - start(round_.w, round_.server, round_.hyper, round_.t)
    return w, {"m": round_.hyper.gamma * round_.server["m"] + D}


ALGORITHM = Algorithm(
    "fedacg",
    "Kim et al., CVPR 2024",
    combine,
    FedACGHyper,
    server=("m",),
    start=start,
    terms=terms,
    weighted=False,
)
