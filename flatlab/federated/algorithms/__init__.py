"""The federated algorithms, one file each; to add one, write its file and register it here."""

from flatlab.federated.algorithms import (
    fedacg,
    fedadam,
    fedasam,
    fedavg,
    fedavgm,
    fedcm,
    feddc,
    feddyn,
    fedgamma,
    fedgf,
    fedgloss,
    fedlesam,
    fedlesam_d,
    fedlesam_s,
    fedmoswa,
    fednsam,
    fedprox,
    fedsam,
    fedsmoo,
    fedspeed,
    fedswa,
    fedwmsam,
    mofedsam,
    scaffold,
)
from flatlab.federated.algorithms.base import Algorithm

_PAPER = (fedavg, fedprox, scaffold, fedsam, fedasam, feddyn, feddc, fedspeed)
_MOMENTUM = (fedavgm, fedadam, fedcm, fedacg)
_FLATNESS = (
    mofedsam, fedgamma, fedsmoo, fedlesam, fedlesam_s, fedlesam_d, fednsam, fedgloss, fedswa, fedmoswa, fedwmsam, fedgf,
)  # fmt: skip

ALGORITHMS: dict[str, Algorithm] = {
    module.ALGORITHM.name: module.ALGORITHM for module in (*_PAPER, *_MOMENTUM, *_FLATNESS)
}
"""Every algorithm by its name on the command line."""
