"""FedGAMMA: SCAFFOLD whose clients take their gradient as FedSAM's do.

    client   g - c_i + c / wt_i, g at theta + rho g / |g|           inside the clip, exactly K steps
    keeps, server   as SCAFFOLD

Source: Dai et al., "FedGAMMA: Federated Learning with Global Sharpness-Aware Minimization" (TNNLS 2023); rho as in
FL-Simulator (woodenchild95). That code divides Delta by K eta_t and rounds K down; here both are SCAFFOLD's, so that
rho = 0 is SCAFFOLD.
"""

from pydantic import Field

from flatlab.federated.algorithms.base import Algorithm, Hyper
from flatlab.federated.algorithms.fedsam import ascent
from flatlab.federated.algorithms.scaffold import combine, keep, terms


class FedGAMMAHyper(Hyper):
    """`rho`, the radius of the neighbourhood."""

    rho: float = Field(0.01, ge=0)


ALGORITHM = Algorithm(
    "fedgamma",
    "Dai et al., TNNLS 2023",
    combine,
    FedGAMMAHyper,
    own=("c",),
    server=("c",),
    terms=terms,
    ascent=ascent,
    keep=keep,
    exact_steps=True,
    weighted=False,
)
