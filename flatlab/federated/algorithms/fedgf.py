"""FedGF: the clients' perturbation goes over from their own to the server's, the more their models drift apart.

    start    w~ = w + rho_g (w_before - w) / |w_before - w|         (known to the clients; they start at w)
    client   g at theta + (1 - c) rho g / |g| + c (w~ - theta)
    server   w as FedAvg
             c = share of the last `window` rounds whose mean_sel |theta_i - w| exceeds `threshold`

Source: Lee and Yoon, "Rethinking the Flat Minima Searching in Federated Learning" (ICML 2024), hwan-sig/Official-FedGF.
Their scripts pass 0.2 and 0.3 by an option that their parser lacks, so that the published threshold is unknown: 0.2 is
the smaller of the two, and what it means depends on the network. Users report that runs with either do not learn; the
author advises a larger one, or another rho (that repository's issue 2)."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms import fedavg, fedsam
from flatlab.federated.algorithms.base import Algorithm, Client, Hyper, Round, norm, of_length


class FedGFHyper(Hyper):
    """Radii `rho` of the clients and `rho_g` of the server; `threshold` and `window` of the drift that mixes them."""

    rho: float = Field(0.05, ge=0)
    rho_g: float = Field(0.05, ge=0)
    threshold: float = Field(0.2, ge=0)
    window: int = Field(30, ge=1, le=10_000)


def initial(w_0: Tensor, hyper: FedGFHyper) -> dict[str, Tensor]:
    """w_before = w_0; c and the window's rounds (1 where the drift was large) are zero."""
    return {
        "w_before": w_0,
        "c": torch.zeros(1, dtype=w_0.dtype),
        "drifted": torch.zeros(hyper.window, dtype=w_0.dtype),
    }


def ascent(client: Client[Any], theta: Tensor, g: Tensor) -> Tensor:
    """(1 - c) rho g / |g| + c (w~ - theta)."""
    c = client.server["c"]
    ahead = of_length(client.hyper.rho_g, client.server["w_before"] - client.w).add_(client.w)
    return fedsam.ascent(client, theta, g).mul_(1 - c).add_((ahead - theta).mul_(c))


def combine(round_: Round[FedGFHyper]) -> tuple[Tensor, dict[str, Tensor]]:
    """w as FedAvg; c of the next round."""
    drifted = round_.server["drifted"].roll(1)
    drifted[0] = float(norm(round_.theta - round_.w).mean() > round_.hyper.threshold)
    c = drifted.sum(0, keepdim=True) / min(round_.t + 1, len(drifted))
    return fedavg.combine(round_)[0], {"w_before": round_.w, "c": c, "drifted": drifted}


ALGORITHM = Algorithm(
    "fedgf",
    "Lee and Yoon, ICML 2024",
    combine,
    FedGFHyper,
    server=("w_before", "c", "drifted"),
    ascent=ascent,
    initial=initial,
)
