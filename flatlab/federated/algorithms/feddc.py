"""FedDC: each client learns its drift h_i, and corrects its gradient as SCAFFOLD does.

    alpha_i  alpha / wt_i
    client   g + alpha_i (theta - w + h_i) - c_i + c / wt_i         inside the clip
    keeps    h_i <- h_i + Delta
             c_i <- c_i - c / wt_i - Delta / (K eta_0)
    server   c as SCAFFOLD, w as FedDyn

Source: Gao et al., "FedDC: Federated Learning with Non-IID Data via Local Drift Decoupling and Correction" (CVPR 2022).
"""

from typing import Any

from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms.base import Algorithm, Client, Hyper, Round, Terms
from flatlab.federated.algorithms.feddyn import next_mean_h
from flatlab.federated.algorithms.scaffold import next_control


class FedDCHyper(Hyper):
    """`alpha`, the weight of the drift penalty alpha/2 |theta - w + h_i|^2."""

    alpha: float = Field(0.01, ge=0)


def terms(client: Client[FedDCHyper]) -> Terms:
    """alpha_i (theta - w + h_i) - c_i + c / wt_i."""
    alpha = client.hyper.alpha / client.wt
    drift = alpha * (client.own["h"] - client.w)
    return Terms(constant=drift - client.own["c"] + client.server["c"] / client.wt, proximal=alpha)


def keep(client: Client[Any], delta: Tensor) -> dict[str, Tensor]:
    """h_i <- h_i + Delta; c_i <- c_i - c / wt_i - Delta / (K eta_0)."""
    control = client.own["c"] - client.server["c"] / client.wt - delta / (client.K * client.eta_0)
    return {"h": client.own["h"] + delta, "c": control}


def combine(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """w <- mean_sel theta + mean_all h; c as SCAFFOLD."""
    h = next_mean_h(round_)
    return round_.theta.mean(0) + h, {"h": h, "c": next_control(round_)}


ALGORITHM = Algorithm(
    "feddc",
    "Gao et al., CVPR 2022",
    combine,
    FedDCHyper,
    own=("h", "c"),
    server=("h", "c"),
    terms=terms,
    keep=keep,
    weighted=False,
    server_differs=True,
)
