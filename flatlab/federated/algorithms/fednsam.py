"""FedNSAM: FedSAM's clients start from a model with the server's momentum already taken.

    start    w~ = w + gamma m
    client   g at theta + rho g / |g|
    server   w <- mean_sel theta_i;  m <- gamma m + D              (as FedACG)

Source: Liu et al., "FedNSAM: Consistency of Local and Global Flatness for Federated Learning" (arXiv 2602.23827). The
abstract perturbs along the momentum, the authors' code along g, as here; its rho is 0.05, its README's 0.01. One
version of that code builds m from the new change alone. Its learning rate falls along half a cosine
(lr_schedule = cosine here).
"""

from pydantic import Field

from flatlab.federated.algorithms.base import Algorithm, Hyper
from flatlab.federated.algorithms.fedacg import combine, start
from flatlab.federated.algorithms.fedsam import ascent


class FedNSAMHyper(Hyper):
    """`gamma`, the momentum, and `rho`, the radius of the neighbourhood."""

    gamma: float = Field(0.85, ge=0, lt=1)
    rho: float = Field(0.05, ge=0)


ALGORITHM = Algorithm(
    "fednsam",
    "Liu et al., arXiv 2602.23827",
    combine,
    FedNSAMHyper,
    server=("m",),
    start=start,
    ascent=ascent,
    weighted=False,
)
