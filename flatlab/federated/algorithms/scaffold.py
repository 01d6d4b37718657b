"""SCAFFOLD: correct each client's drift by control variates c_i and their mean c.

    client   g - c_i + c / wt_i                                     inside the clip, exactly K steps
    keeps    c_i <- c_i - c - Delta / (K eta_0)
    server   c   <- c + 1/N sum_sel wt_i (c_i+ - c_i)
             w   <- mean_sel theta_i

Source: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning" (ICML 2020), option II,
with the client weights wt_i of the MAN reference.
"""

from typing import Any

from torch import Tensor

from flatlab.federated.algorithms.base import Algorithm, Client, Round, Terms


def terms(client: Client[Any]) -> Terms:
    """- c_i + c / wt_i."""
    return Terms(constant=client.server["c"] / client.wt - client.own["c"])


def keep(client: Client[Any], delta: Tensor) -> dict[str, Tensor]:
    """c_i <- c_i - c - Delta / (K eta_0)."""
    return {"c": client.own["c"] - client.server["c"] - delta / (client.K * client.eta_0)}


def combine(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """w <- mean_sel theta; c <- c + 1/N sum_sel wt_i (c_i+ - c_i)."""
    return round_.theta.mean(0), {"c": next_control(round_)}


def next_control(round_: Round[Any]) -> Tensor:
    """c + 1/N sum_sel wt_i (c_i+ - c_i), shape (P,)."""
    return round_.server["c"] + (round_.wt * (round_.after["c"] - round_.before["c"])).sum(0) / round_.N


ALGORITHM = Algorithm(
    "scaffold",
    "Karimireddy et al., ICML 2020",
    combine,
    own=("c",),
    server=("c",),
    terms=terms,
    keep=keep,
    exact_steps=True,
    weighted=False,
)
