"""FedLESAM-S: SCAFFOLD with FedLESAM's perturbation, in one pass.

    client   g at FedLESAM's perturbed model; terms as SCAFFOLD
    keeps    as both
    server   as SCAFFOLD

Source: as FedLESAM. The authors' code weighs c - c_i by 0.1; here, as in the paper, it is SCAFFOLD's.
"""

from flatlab.federated.algorithms import fedlesam, scaffold

ALGORITHM = fedlesam.perturbed("fedlesam-s", scaffold.ALGORITHM, fedlesam.FedLESAMHyper)
