"""FedSpeed: FedDyn's dynamic term with a SAM-type gradient.

    alpha_i  alpha / wt_i
    client   gradient at theta + rho g / (|g| + 1e-7)               (the loss with MAN, where on, both times)
             + alpha_i (h_i - w)                                    inside the clip
             alpha_i theta                                          outside the clip
    keeps    h_i <- h_i + Delta
    server   w   <- mean_sel theta_i + mean h_i                     (over all N clients, or the participants)

The reference adds the previous step's gradient to the direction of ascent (its gradient buffer is not cleared); here
the ascent follows the gradient at theta alone, as in the paper. The paper averages h over the participants
(dual_mean = "active"), the reference over all clients (dual_mean = "all", the default).

Source: Sun et al., "FedSpeed: Larger Local Interval, Less Communication Round, and Higher Generalization Accuracy"
(ICLR 2023).
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms.base import Algorithm, Client, Round, norm
from flatlab.federated.algorithms.feddyn import FedDynHyper, keep, next_mean_h, terms


class FedSpeedHyper(FedDynHyper):
    """`alpha` as in FedDyn, `rho` the radius of the ascent, `dual_mean` the clients over which h is averaged."""

    rho: float = Field(0.01, ge=0)
    dual_mean: Literal["all", "active"] = "all"


def ascent(client: Client[FedSpeedHyper], theta: Tensor, g: Tensor) -> Tensor:
    """rho g / (|g| + 1e-7)."""
    return client.hyper.rho * g / (norm(g) + 1e-7)


def combine(round_: Round[FedSpeedHyper]) -> tuple[Tensor, dict[str, Tensor]]:
    """w <- mean_sel theta + mean h."""
    h = next_mean_h(round_)
    dual = h if round_.hyper.dual_mean == "all" else round_.after["h"].mean(0)
    return round_.theta.mean(0) + dual, {"h": h}


ALGORITHM = Algorithm(
    "fedspeed",
    "Sun et al., ICLR 2023",
    combine,
    FedSpeedHyper,
    own=("h",),
    server=("h",),
    terms=terms,
    ascent=ascent,
    keep=keep,
    weighted=False,
    server_differs=True,
)
