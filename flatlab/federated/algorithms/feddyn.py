"""FedDyn: a linear and a quadratic term that make the clients' optima agree with the server's.

    alpha_i  alpha / wt_i
    client   g + alpha_i (h_i - w)                                  inside the clip
             alpha_i theta                                          outside the clip
    keeps    h_i <- h_i + Delta
    server   w   <- mean_sel theta_i + mean_all h_i                 (over all N clients, after their update)

The two client terms together are alpha_i (theta - w + h_i), the gradient of
alpha_i/2 |theta - w|^2 + alpha_i h_i . theta. The reference hides half of the quadratic one in its optimiser's weight
decay, which puts it outside the clip.
The server keeps h = mean_all h_i, moved by each round's changes, so that no round reads every client's vector.

Source: Acar et al., "Federated Learning Based on Dynamic Regularization" (ICLR 2021).
"""

from typing import Any

from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms.base import Algorithm, Client, Hyper, Round, Terms


class FedDynHyper(Hyper):
    """`alpha`, the weight of the dynamic regulariser."""

    alpha: float = Field(0.01, ge=0)


def terms(client: Client[FedDynHyper]) -> Terms:
    """alpha_i (h_i - w) inside the clip, alpha_i theta outside."""
    alpha = client.hyper.alpha / client.wt
    return Terms(constant=alpha * (client.own["h"] - client.w), decay=alpha)


def keep(client: Client[Any], delta: Tensor) -> dict[str, Tensor]:
    """h_i <- h_i + Delta."""
    return {"h": client.own["h"] + delta}


def combine(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """w <- mean_sel theta + mean_all h."""
    h = next_mean_h(round_)
    return round_.theta.mean(0) + h, {"h": h}


def next_mean_h(round_: Round[Any]) -> Tensor:
    """mean_all h_i after the participants' update: h + 1/N sum_sel (h_i+ - h_i), shape (P,)."""
    return round_.server["h"] + (round_.after["h"] - round_.before["h"]).sum(0) / round_.N


ALGORITHM = Algorithm(
    "feddyn",
    "Acar et al., ICLR 2021",
    combine,
    FedDynHyper,
    own=("h",),
    server=("h",),
    terms=terms,
    keep=keep,
    weighted=False,
    server_differs=True,
)
