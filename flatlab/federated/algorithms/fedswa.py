"""FedSWA: a learning rate that falls within the round, and a server that goes beyond the participants' mean.

    client   eta_t,k = eta_t (1 - (1 - rho) k / K)                  exactly K steps
    server   w <- w + alpha D

Source: Liu et al., "Improving Generalization in Federated Learning with Highly Heterogeneous Data via Momentum-Based
Stochastic Controlled Weight Averaging" (ICML 2025), after a summary of it. The authors' code has rho = 0, twice the
learning rate and alpha = 1: the paper is followed."""

from typing import Any

from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms.base import Algorithm, Client, Hyper, Round


class FedSWAHyper(Hyper):
    """`rho`, what is left of the learning rate at a round's end, and `alpha`, how far the server goes."""

    rho: float = Field(0.1, ge=0, le=1)
    alpha: float = Field(1.5, gt=0)


def rate(client: Client[Any], k: int) -> float:
    """1 - (1 - rho) k / K."""
    factor: float = 1 - (1 - client.hyper.rho) * k / client.K
    return factor


def combine(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """w <- w + alpha D."""
    w: Tensor = round_.w + round_.hyper.alpha * (round_.theta.mean(0) - round_.w)
    return w, {}


ALGORITHM = Algorithm(
    "fedswa",
    "Liu et al., ICML 2025",
    combine,
    FedSWAHyper,
    rate=rate,
    exact_steps=True,
    weighted=False,
    server_differs=True,
)
