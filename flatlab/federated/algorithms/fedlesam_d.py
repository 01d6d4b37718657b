"""FedLESAM-D: FedDyn with FedLESAM's perturbation, in one pass.

    client   g at FedLESAM's perturbed model; terms as FedDyn
    keeps    as both
    server   as FedDyn

Source: as FedLESAM.
"""

from typing import Any

from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms import feddyn, fedlesam
from flatlab.federated.algorithms.base import Algorithm, Client, Round


class FedLESAMDHyper(fedlesam.FedLESAMHyper):
    """FedLESAM's, and FedDyn's `alpha`."""

    alpha: float = Field(0.01, ge=0)


def keep(client: Client[Any], delta: Tensor) -> dict[str, Tensor]:
    """What each of the two keeps."""
    return {**fedlesam.keep(client, delta), **feddyn.keep(client, delta)}


def combine(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """w and h as FedDyn; w_old <- w."""
    w, vectors = feddyn.combine(round_)
    return w, {**vectors, "w_old": round_.w}


ALGORITHM = Algorithm(
    "fedlesam-d",
    "Fan et al., ICML 2024",
    combine,
    FedLESAMDHyper,
    own=("w_old", "h"),
    server=("w_old", "h"),
    terms=feddyn.terms,
    lookahead=fedlesam.lookahead,
    initial=fedlesam.initial,
    keep=keep,
    server_differs=True,
    weighted=False,
)
