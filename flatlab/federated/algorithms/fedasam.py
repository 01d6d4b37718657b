"""FedASAM: FedSAM in a neighbourhood that stretches with the weights.

    T        |theta| + eta on weights, 1 on biases and norm parameters
    client   gradient of the loss at theta + rho T^2 g / |T g|      (the loss with MAN, where on, both times)
    server   as FedAvg

Source: Caldarola et al., "Improving Generalization in Federated Learning by Seeking Flat Minima" (ECCV 2022), after
Kwon et al., "ASAM" (ICML 2021).
"""

import torch
from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms.base import LEAST_NORM, Algorithm, Client, Hyper, norm
from flatlab.federated.algorithms.fedavg import combine


class FedASAMHyper(Hyper):
    """`rho`, the radius of the neighbourhood, and `eta`, what keeps it open where weights vanish."""

    rho: float = Field(0.5, ge=0)
    eta: float = Field(0.2, ge=0)


def ascent(client: Client[FedASAMHyper], theta: Tensor, g: Tensor) -> Tensor:
    """rho T^2 g / |T g|; zero where g is."""
    T = torch.where(client.is_weight, theta.abs() + client.hyper.eta, 1.0)
    Tg = T * g
    return client.hyper.rho * T * Tg / norm(Tg).clamp_min(LEAST_NORM)


ALGORITHM = Algorithm("fedasam", "Caldarola et al., ECCV 2022", combine, FedASAMHyper, ascent=ascent)
