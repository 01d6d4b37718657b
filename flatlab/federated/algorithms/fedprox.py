"""FedProx: FedAvg with a pull back to the server model.

    client   g + mu (theta - w)                                     inside the clip
    server   as FedAvg

Source: Li et al., "Federated Optimization in Heterogeneous Networks" (MLSys 2020).
"""

from pydantic import Field

from flatlab.federated.algorithms.base import Algorithm, Client, Hyper, Terms
from flatlab.federated.algorithms.fedavg import combine


class FedProxHyper(Hyper):
    """`mu`, the weight of the proximal term mu/2 |theta - w|^2."""

    mu: float = Field(1e-4, ge=0)


def terms(client: Client[FedProxHyper]) -> Terms:
    """mu (theta - w)."""
    mu = client.hyper.mu
    return Terms(constant=-mu * client.w, proximal=mu)


ALGORITHM = Algorithm("fedprox", "Li et al., MLSys 2020", combine, FedProxHyper, terms=terms)
