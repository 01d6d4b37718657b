"""FedSAM: the clients take their gradient where the loss is worst nearby.

    client   gradient of the loss at theta + rho g / |g|            (the loss with MAN, where on, both times)
    server   as FedAvg

Source: Qu et al., "Generalized Federated Learning via Sharpness Aware Minimization" (ICML 2022); Caldarola et al.,
"Improving Generalization in Federated Learning by Seeking Flat Minima" (ECCV 2022).
"""

from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms.base import Algorithm, Client, Hyper, of_length
from flatlab.federated.algorithms.fedavg import combine


class FedSAMHyper(Hyper):
    """`rho`, the radius of the neighbourhood."""

    rho: float = Field(0.05, ge=0)


def ascent(client: Client[FedSAMHyper], theta: Tensor, g: Tensor) -> Tensor:
    """rho g / |g|; zero where g is."""
    return of_length(client.hyper.rho, g)


ALGORITHM = Algorithm(
    "fedsam", "Qu et al., ICML 2022; Caldarola et al., ECCV 2022", combine, FedSAMHyper, ascent=ascent
)
