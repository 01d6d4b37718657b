"""FedGloSS: the server perturbs its model as SAM would, by the round before; the clients are pulled together by duals.

    start    w~ = w + rho_t P / |P|                                 (P = -D of the round before; w~ = w in round 0)
    client   g at theta + rho_l,t g / |g|
             - sigma_i + (theta - w~) / beta                        inside the clip
    keeps    sigma_i <- sigma_i - Delta / beta
    server   sigma <- sigma - sum_sel Delta_i / (beta N)
             w     <- w + D - beta sigma                            (from w, not from w~; the new sigma)

Both radii grow from rho_0 to their values over the first `warmup` rounds.

Source: Caldarola et al., "Beyond Local Sharpness: Communication-Efficient Global Sharpness-aware Minimization for
Federated Learning" (CVPR 2025), Algorithm 1 and its values for CIFAR-100, there 20,000 rounds with a warm-up over three
quarters of them; the warm-up here is as long a part of the paper's 500. (CIFAR-10's are rho = rho_l = 0.15, beta = 10
and a fifth of 10,000 rounds, as its presets have them.) The authors' code divides by |S| once more, reads the server's
radius off the clients' list and lays the penalty's centre anew in every epoch: the algorithm as printed is followed."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms.base import Algorithm, Client, Hyper, Round, Terms, of_length


class FedGloSSHyper(Hyper):
    """Radii of server (`rho`) and clients (`rho_l`), both `rho_0` at first; `beta`, the penalty's inverse weight."""

    rho: float = Field(0.01, ge=0)
    rho_l: float = Field(0.2, ge=0)
    beta: float = Field(100.0, gt=0)
    rho_0: float = Field(1e-3, ge=0)
    warmup: int = Field(375, ge=1)


def radius(full: float, hyper: FedGloSSHyper, t: int | Tensor) -> Tensor:
    """rho_0 + (full - rho_0) min(t / warmup, 1), shape ()."""
    share = torch.as_tensor(t / hyper.warmup, dtype=torch.float64).clamp(max=1.0)
    return hyper.rho_0 + (full - hyper.rho_0) * share


def start(w: Tensor, server: Mapping[str, Tensor], hyper: Any, t: int) -> Tensor:
    """w~ = w + rho_t P / |P|."""
    return w + of_length(radius(hyper.rho, hyper, t), server["P"])


def ascent(client: Client[FedGloSSHyper], theta: Tensor, g: Tensor) -> Tensor:
    """rho_l,t g / |g|."""
    return of_length(radius(client.hyper.rho_l, client.hyper, client.t), g)


def terms(client: Client[FedGloSSHyper]) -> Terms:
    """- sigma_i + (theta - w~) / beta."""
    beta = client.hyper.beta
    return Terms(constant=-client.own["sigma"] - client.w / beta, proximal=1 / beta)


def keep(client: Client[Any], delta: Tensor) -> dict[str, Tensor]:
    """sigma_i <- sigma_i - Delta / beta."""
    return {"sigma": client.own["sigma"] - delta / client.hyper.beta}


def combine(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """w <- w + D - beta sigma."""
    beta = round_.hyper.beta
    changes = round_.theta - start(round_.w, round_.server, round_.hyper, round_.t)
    sigma = round_.server["sigma"] - changes.sum(0) / (beta * round_.N)
    D = changes.mean(0)
    return round_.w + D - beta * sigma, {"sigma": sigma, "P": -D}


ALGORITHM = Algorithm(
    "fedgloss",
    "Caldarola et al., CVPR 2025",
    combine,
    FedGloSSHyper,
    own=("sigma",),
    server=("sigma", "P"),
    start=start,
    terms=terms,
    ascent=ascent,
    keep=keep,
    weighted=False,
    server_differs=True,
)
