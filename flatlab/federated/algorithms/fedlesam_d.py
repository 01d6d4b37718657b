"""FedLESAM-D: FedDyn with FedLESAM's perturbation, in one pass.

    client   g at FedLESAM's perturbed model; terms as FedDyn
    keeps    as both
    server   as FedDyn

Source: as FedLESAM; alpha is FedDyn's.
"""

from pydantic import Field

from flatlab.federated.algorithms import feddyn, fedlesam


class FedLESAMDHyper(fedlesam.FedLESAMHyper):
    """FedLESAM's, and FedDyn's `alpha`."""

    alpha: float = Field(0.01, ge=0)


ALGORITHM = fedlesam.perturbed("fedlesam-d", feddyn.ALGORITHM, FedLESAMDHyper)
