"""FedAdam: Adam on the server, the participants' mean change in place of a gradient.

    server   m <- beta_1 m + (1 - beta_1) D
             v <- beta_2 v + (1 - beta_2) D^2                       (v = tau^2 at first; no bias correction)
             w <- w + eta_g m / (sqrt(v) + tau)

Source: Reddi et al., "Adaptive Federated Optimization" (ICLR 2021), who ask for v_0 >= tau^2. The defaults are those of
FL-Simulator (woodenchild95), which starts at v = 0 and halves eta_g for some of its runs; the FedACG authors' code has
eta_g = 0.01 and tau = 0.001.
"""

import torch
from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms.base import Algorithm, Hyper, Round


class FedAdamHyper(Hyper):
    """Adam's `beta_1`, `beta_2` and `tau`, and the server's learning rate `eta_g`."""

    beta_1: float = Field(0.9, ge=0, lt=1)
    beta_2: float = Field(0.99, ge=0, le=1)
    tau: float = Field(0.01, gt=0)
    eta_g: float = Field(0.1, gt=0)


def initial(w_0: Tensor, hyper: FedAdamHyper) -> dict[str, Tensor]:
    """v_0 = tau^2."""
    return {"v": torch.full_like(w_0, hyper.tau**2)}


def combine(round_: Round[FedAdamHyper]) -> tuple[Tensor, dict[str, Tensor]]:
    """w <- w + eta_g m / (sqrt(v) + tau)."""
    hyper, D = round_.hyper, round_.theta.mean(0) - round_.w
    m = hyper.beta_1 * round_.server["m"] + (1 - hyper.beta_1) * D
    v = hyper.beta_2 * round_.server["v"] + (1 - hyper.beta_2) * D.square()
    return round_.w + hyper.eta_g * m / (v.sqrt() + hyper.tau), {"m": m, "v": v}


ALGORITHM = Algorithm(
    "fedadam",
    "Reddi et al., ICLR 2021",
    combine,
    FedAdamHyper,
    server=("m", "v"),
    initial=initial,
    weighted=False,
    server_differs=True,
)
