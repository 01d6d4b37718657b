"""The federated algorithms, one file each; to add one, write its file and register it here."""

from flatlab.federated.algorithms import fedasam, fedavg, feddc, feddyn, fedprox, fedsam, fedspeed, scaffold
from flatlab.federated.algorithms.base import Algorithm

ALGORITHMS: dict[str, Algorithm] = {
    module.ALGORITHM.name: module.ALGORITHM
    for module in (fedavg, fedprox, scaffold, fedsam, fedasam, feddyn, feddc, fedspeed)
}
"""Every algorithm by its name on the command line."""
