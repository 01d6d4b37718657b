"""FedLESAM: one pass, perturbed as the server's model has moved since the client last saw it.

    client   g at theta + rho (w_old_i - w) / (|w_old_i - w| + 1e-7)     in every step the same
    keeps    w_old_i <- w                                              (w_0 at first: no perturbation in round 0)
    server   as FedAvg

With reference = "last_round" every client takes the model of the round before instead, as the authors' code does.

Source: Fan et al., "Locally Estimated Global Perturbations are Better than Local Perturbations for Federated
Sharpness-aware Minimization" (ICML 2024); rho as issue 1 of MediaBrain-SJTU/FedLESAM reads it there, and as the
FedWMSAM authors use it (that repository's README has 0.5, its script 0.1). Its code indexes the flat update by tensor
number, so that each tensor is shifted by one scalar; here every entry has its own.
"""

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms import fedavg
from flatlab.federated.algorithms.base import Algorithm, Client, Hyper, Round, norm


class FedLESAMHyper(Hyper):
    """`rho`, the length of the perturbation, and the `reference` that w is compared with."""

    rho: float = Field(0.01, ge=0)
    reference: Literal["last_seen", "last_round"] = "last_seen"


def initial(w_0: Tensor, hyper: Any) -> dict[str, Tensor]:
    """w_old = w_0."""
    return {"w_old": w_0}


def lookahead(client: Client[Any], theta: Tensor, k: int | Tensor) -> Tensor:
    """rho (w_old - w) / (|w_old - w| + 1e-7)."""
    old = client.server if client.hyper.reference == "last_round" else client.own
    back = old["w_old"] - client.w
    return back.mul_(client.hyper.rho / (norm(back) + 1e-7))  # one vector of its own is all that a step takes


SOURCE = "Fan et al., ICML 2024"


def perturbed(name: str, rules: Algorithm, hyper: type[FedLESAMHyper]) -> Algorithm:
    """Another method with this one's perturbation, w_old kept beside its own vectors."""

    def keep(client: Client[Any], delta: Tensor) -> dict[str, Tensor]:
        return {**rules.keep(client, delta), "w_old": client.w.expand_as(delta)}

    def combine(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        w, vectors = rules.combine(round_)
        return w, {**vectors, "w_old": round_.w}

    return replace(
        rules,
        name=name,
        source=SOURCE,
        hyper=hyper,
        own=(*rules.own, "w_old"),
        server=(*rules.server, "w_old"),
        lookahead=lookahead,
        initial=initial,
        keep=keep,
        combine=combine,
    )


ALGORITHM = perturbed("fedlesam", fedavg.ALGORITHM, FedLESAMHyper)
