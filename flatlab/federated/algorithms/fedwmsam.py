"""FedWMSAM: FedCM with SCAFFOLD's correction, its gradient taken away from where the momentum leads, in one pass.

    m_i      m + alpha / (1 - alpha) (c / wt_i - c_i)
    client   alpha g + (1 - alpha) m_i                              inside the clip, exactly K steps
             g at theta + rho v / (|v| + 1e-7),  v = theta - (w - k eta_t m_i)
    keeps    c_i as SCAFFOLD
    server   w, m as FedCM; c as SCAFFOLD
             alpha <- (1 - lam) alpha + lam clamp(1 - mean_sel cos(Delta_i, -m), 0.1, 0.9)

Source: "FedWMSAM" (arXiv 2511.22080), 500 rounds. Of the perturbation there are three versions: the equation points to
the predicted model, the text says that the loss rises away from it, and the code predicts uphill, without the learning
rate and with one scalar for each tensor. Here it points from the predicted model to theta, which is what the text
describes: a repair. The paper adapts alpha by the cosine of m and m_i, the code as here; the code also lets m shrink by
the learning rate's decay in every round, which no equation has.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from flatlab.federated.algorithms import scaffold
from flatlab.federated.algorithms.base import Algorithm, Client, Hyper, Round, Terms, norm
from flatlab.federated.algorithms.fedcm import next_direction


class FedWMSAMHyper(Hyper):
    """`alpha`, the first share of the own gradient; `lam`, how fast it adapts; `rho`, the perturbation's length."""

    alpha: float = Field(0.1, gt=0, lt=1)
    lam: float = Field(0.01, ge=0, le=1)
    rho: float = Field(0.01, ge=0)


def initial(w_0: Tensor, hyper: FedWMSAMHyper) -> dict[str, Tensor]:
    """alpha, one number."""
    return {"alpha": torch.full((1,), hyper.alpha, dtype=w_0.dtype)}


def momentum(client: Client[Any]) -> Tensor:
    """m_i = m + alpha / (1 - alpha) (c / wt_i - c_i)."""
    alpha = client.server["alpha"]
    return client.server["m"] + alpha / (1 - alpha) * (client.server["c"] / client.wt - client.own["c"])


def terms(client: Client[Any]) -> Terms:
    """alpha g + (1 - alpha) m_i."""
    alpha = client.server["alpha"]
    return Terms(gradient=alpha, constant=(1 - alpha) * momentum(client))


def lookahead(client: Client[Any], theta: Tensor, k: int | Tensor) -> Tensor:
    """rho v / (|v| + 1e-7); zero in the first step, where v is."""
    v = theta - client.w + k * client.eta * momentum(client)
    perturbation: Tensor = client.hyper.rho * v / (norm(v) + 1e-7)
    return perturbation


def combine(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """w <- mean_sel theta; m, c and alpha for the next round."""
    lam, alpha, m = round_.hyper.lam, round_.server["alpha"], round_.server["m"]
    agreement = F.cosine_similarity(round_.theta - round_.w, -m.expand_as(round_.theta), dim=-1).mean()
    alpha = (1 - lam) * alpha + lam * (1 - agreement).clamp(0.1, 0.9)
    vectors = {"m": next_direction(round_), "c": scaffold.next_control(round_), "alpha": alpha}
    return round_.theta.mean(0), vectors


ALGORITHM = Algorithm(
    "fedwmsam",
    "arXiv 2511.22080",
    combine,
    FedWMSAMHyper,
    own=("c",),
    server=("m", "c", "alpha"),
    terms=terms,
    lookahead=lookahead,
    initial=initial,
    keep=scaffold.keep,
    exact_steps=True,
    weighted=False,
)
