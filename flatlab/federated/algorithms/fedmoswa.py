"""FedMoSWA: FedSWA with control variates c_i and a momentum m of them.

    client   g - c_i + m inside the clip, eta_t,k as FedSWA         exactly K steps
    keeps    c_i <- c_i - m - Delta / sum_k eta_t,k                 (sum_k eta_t,k = eta_t (K (1 + rho) + 1 - rho) / 2)
    server   w <- w + alpha D
             m <- m + gamma mean_sel (c_i+ - m)

Source: as FedSWA. In the authors' code the name stands for another method (constant rate, alpha = 1, gamma = 0.4): the
paper is followed.
"""

from typing import Any

from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms import fedswa
from flatlab.federated.algorithms.base import Algorithm, Client, Round, Terms


class FedMoSWAHyper(fedswa.FedSWAHyper):
    """FedSWA's, and `gamma`, the share of the new in m."""

    gamma: float = Field(0.2, gt=0, le=1)


def terms(client: Client[Any]) -> Terms:
    """- c_i + m."""
    return Terms(constant=client.server["m"] - client.own["c"])


def keep(client: Client[Any], delta: Tensor) -> dict[str, Tensor]:
    """c_i <- c_i - m - Delta / sum_k eta_t,k."""
    rho, K = client.hyper.rho, client.K
    rates = client.eta * (K * (1 + rho) + 1 - rho) / 2
    return {"c": client.own["c"] - client.server["m"] - delta / rates}


def combine(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """w <- w + alpha D; m <- m + gamma mean_sel (c_i+ - m)."""
    m = round_.server["m"]
    return fedswa.combine(round_)[0], {"m": m + round_.hyper.gamma * (round_.after["c"].mean(0) - m)}


ALGORITHM = Algorithm(
    "fedmoswa",
    "Liu et al., ICML 2025",
    combine,
    FedMoSWAHyper,
    own=("c",),
    server=("m",),
    terms=terms,
    rate=fedswa.rate,
    keep=keep,
    exact_steps=True,
    weighted=False,
    server_differs=True,
)
