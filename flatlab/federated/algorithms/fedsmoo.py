"""FedSMOO: FedDyn whose clients also make their perturbations agree, by duals mu_i and the server's direction s.

    client   u = g - mu_i - s;  eps = rho u / (|u| + 1e-7)
             g at theta + eps, and then mu_i <- mu_i + eps - s
             alpha_i (h_i - w) inside the clip, alpha_i theta outside      (alpha_i = alpha / wt_i, as FedDyn)
    keeps    h_i <- h_i + Delta, mu_i, and mu_i - eps of the last step
    server   w as FedDyn
             S = mean_sel (mu_i - eps);  s <- rho S / (|S| + 1e-7)

Source: Sun et al., "Dynamic Regularized Sharpness Aware Minimization in Federated Learning: Approaching Global
Consistency and Smooth Landscape" (ICML 2023); hyperparameters of FL-Simulator (woodenchild95). Its server leaves eps
out of S; an independent port (hwan-sig/Official-FedGF) has it, as here. Until 26 October 2024 it cut every tensor of
mu_i and s from the head of the vector, and the numbers in its README are older. Its issue 13 doubts the sign of the
quadratic term in the paper's Eq. 9, a maximum: the client's step above is that of both programs."""

from typing import Any

from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms import feddyn
from flatlab.federated.algorithms.base import Algorithm, Client, Hyper, Round, norm

_LEAST = 1e-7  # added to norms, as in the reference


class FedSMOOHyper(Hyper):
    """FedDyn's `alpha`, and `rho`, the radius of the neighbourhood."""

    alpha: float = Field(0.1, ge=0)
    rho: float = Field(0.1, ge=0)


def ascent(client: Client[FedSMOOHyper], theta: Tensor, g: Tensor) -> Tensor:
    """eps = rho u / (|u| + 1e-7) with u = g - mu_i - s."""
    u = g - client.own["mu"] - client.server["s"]
    return client.hyper.rho * u / (norm(u) + _LEAST)


def during(client: Client[Any], eps: Tensor) -> dict[str, Tensor]:
    """mu_i <- mu_i + eps - s, and beside it mu_i - eps."""
    rest = client.own["mu"] - client.server["s"]
    return {"mu": rest + eps, "mu_less_eps": rest}


def keep(client: Client[Any], delta: Tensor) -> dict[str, Tensor]:
    """h_i <- h_i + Delta; the duals as the last step left them."""
    return {**client.own, **feddyn.keep(client, delta)}


def combine(round_: Round[FedSMOOHyper]) -> tuple[Tensor, dict[str, Tensor]]:
    """w <- mean_sel theta + mean_all h; s <- rho S / (|S| + 1e-7)."""
    w, vectors = feddyn.combine(round_)
    S = round_.after["mu_less_eps"].mean(0)
    return w, {**vectors, "s": round_.hyper.rho * S / (norm(S) + _LEAST)}


ALGORITHM = Algorithm(
    "fedsmoo",
    "Sun et al., ICML 2023",
    combine,
    FedSMOOHyper,
    own=("h", "mu", "mu_less_eps"),
    server=("h", "s"),
    terms=feddyn.terms,
    ascent=ascent,
    during=during,
    keep=keep,
    weighted=False,
    server_differs=True,
)
