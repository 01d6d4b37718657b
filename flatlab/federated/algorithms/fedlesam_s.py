"""FedLESAM-S: SCAFFOLD with FedLESAM's perturbation, in one pass.

    client   g at FedLESAM's perturbed model; terms as SCAFFOLD
    keeps    as both
    server   as SCAFFOLD

Source: as FedLESAM. The authors' code weighs c - c_i by 0.1; here, as in the paper, it is SCAFFOLD's.
"""

from typing import Any

from torch import Tensor

from flatlab.federated.algorithms import fedlesam, scaffold
from flatlab.federated.algorithms.base import Algorithm, Client, Round


def keep(client: Client[Any], delta: Tensor) -> dict[str, Tensor]:
    """What each of the two keeps."""
    return {**fedlesam.keep(client, delta), **scaffold.keep(client, delta)}


def combine(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """w and c as SCAFFOLD; w_old <- w."""
    w, vectors = scaffold.combine(round_)
    return w, {**vectors, "w_old": round_.w}


ALGORITHM = Algorithm(
    "fedlesam-s",
    "Fan et al., ICML 2024",
    combine,
    fedlesam.FedLESAMHyper,
    own=("w_old", "c"),
    server=("w_old", "c"),
    terms=scaffold.terms,
    lookahead=fedlesam.lookahead,
    initial=fedlesam.initial,
    keep=keep,
    exact_steps=True,
    weighted=False,
)
