"""FedAvgM: FedAvg with momentum on the server.

    server   m <- beta m + D
             w <- w + m

Source: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification" (2019). The default is theirs; the FedACG authors' code has 0.4.
"""

from pydantic import Field
from torch import Tensor

from flatlab.federated.algorithms.base import Algorithm, Hyper, Round


class FedAvgMHyper(Hyper):
    """`beta`, the momentum."""

    beta: float = Field(0.9, ge=0, lt=1)


def combine(round_: Round[FedAvgMHyper]) -> tuple[Tensor, dict[str, Tensor]]:
    """m <- beta m + D; w <- w + m."""
    m = round_.hyper.beta * round_.server["m"] + round_.theta.mean(0) - round_.w
    return round_.w + m, {"m": m}


ALGORITHM = Algorithm(
    "fedavgm", "Hsu et al., 2019", combine, FedAvgMHyper, server=("m",), weighted=False, server_differs=True
)
