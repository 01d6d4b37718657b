"""MoFedSAM: FedCM whose clients take their gradient as FedSAM's do.

    client   alpha g + (1 - alpha) m, g at theta + rho g / |g|      inside the clip
    server   as FedCM

Source: Qu et al., "Generalized Federated Learning via Sharpness Aware Minimization" (ICML 2022). FL-Simulator has rho =
0.1; the FedWMSAM paper's sweep over 500 rounds of CIFAR-10 is best at 0.01 (73.86 %, against 55.62 at 0.1), taken here.
That paper's main table has the 73.86 too, while its text says that its runs had 0.1.
"""

from pydantic import Field

from flatlab.federated.algorithms.base import Algorithm
from flatlab.federated.algorithms.fedcm import FedCMHyper, combine, terms
from flatlab.federated.algorithms.fedsam import ascent


class MoFedSAMHyper(FedCMHyper):
    """FedCM's `alpha`, and `rho`, the radius of the neighbourhood."""

    rho: float = Field(0.01, ge=0)


ALGORITHM = Algorithm(
    "mofedsam",
    "Qu et al., ICML 2022",
    combine,
    MoFedSAMHyper,
    server=("m",),
    terms=terms,
    ascent=ascent,
    weighted=False,
)
