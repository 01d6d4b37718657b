"""How methods and partitions are called in print."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ALGORITHM_NAMES = {
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "fedsam": "FedSAM",
    "fedasam": "FedASAM",
    "feddyn": "FedDyn",
    "feddc": "FedDC",
    "fedspeed": "FedSpeed",
    "fedavgm": "FedAvgM",
    "fedadam": "FedAdam",
    "fedcm": "FedCM",
    "fedacg": "FedACG",
    "mofedsam": "MoFedSAM",
    "fedgamma": "FedGAMMA",
    "fedsmoo": "FedSMOO",
    "fedlesam": "FedLESAM",
    "fedlesam-s": "FedLESAM-S",
    "fedlesam-d": "FedLESAM-D",
    "fednsam": "FedNSAM",
    "fedgloss": "FedGloSS",
    "fedswa": "FedSWA",
    "fedmoswa": "FedMoSWA",
    "fedwmsam": "FedWMSAM",
    "fedgf": "FedGF",
}

REPORTED = {
    "server": "the model that the server sends out",
    "selected": "the mean of the models of the round's participants",
    "all": "the mean over all clients of each one's last model",
    "swa": "the average of the server's models over the last rounds",
}
"""The model that a run reports, `RunConfig.report`, in words."""


NETWORK = "whole network"
"""The key of the network beside its layers: no module's attribute can have this name."""


def block_label(name: str) -> str:
    """The network's or a layer's name in tables and pictures; the model itself, as a layer, has none of its own."""
    return {NETWORK: "network", "": "(own)"}.get(name, name)


def algorithm_label(name: str) -> str:
    """The algorithm's usual spelling; of a user's own, package.module:ALGORITHM, package.module."""
    return ALGORITHM_NAMES.get(name, name.removesuffix(":ALGORITHM"))


def man_label(man: bool, zetas: Sequence[float]) -> str:
    """Without or with MAN, and its coefficients, if any run has it."""
    if not man:
        return "without MAN"
    return f"with MAN (ζ = {' or '.join(f'{zeta:g}' for zeta in zetas)})" if zetas else "with MAN"


SPLIT_PARAMETERS = {
    "dirichlet": "delta",
    "classes": "classes_per_client",
    "shards": "shards_per_client",
    "lognormal-sizes": "sigma",
    "dirichlet-sizes": "delta",
    "column": "partition_column",
    "file": "partition_file",
}
"""Of each kind of split, the field of a run that says how it is meant."""


def split_label(run: Mapping[str, Any]) -> str:
    """The label of a run's split, from its configuration."""
    kind = run["partition"]
    if kind not in SPLIT_PARAMETERS:
        return partition_label(kind)
    value = run[SPLIT_PARAMETERS[kind]]
    return partition_label(f"{kind}-{value if isinstance(value, str) else f'{value:g}'}")


def group_labels(groups: Iterable[str]) -> dict[str, str]:
    """Names for groups of runs that are compared, each as JSON what its runs share: and whatever sets it apart."""
    shared = {group: json.loads(group) for group in groups}
    usual = {group: f"{run['dataset']}, {run['algorithm']}, {split_label(run)}" for group, run in shared.items()}
    labels = {}
    for group, run in shared.items():
        namesakes = [shared[other] for other, label in usual.items() if label == usual[group]]
        names = [name for name in run if any(other.get(name) != run[name] for other in namesakes)]
        labels[group] = ", ".join([usual[group], *(f"{name} {json.dumps(run[name])}" for name in names)])
    return labels


def partition_label(row: str) -> str:
    """IID, or the split's kind and its parameter (Dirichlet 0.3); and what else the name of a row says."""
    name, *rest = row.split("; ", 1)
    kind = max((kind for kind in SPLIT_PARAMETERS if name.startswith(f"{kind}-")), key=len, default=name)
    parameter = name.removeprefix(kind).replace("-", " ", 1)
    label = "IID" if name == "iid" else f"{kind.replace('-', ' ').capitalize()}{parameter}"
    return ", ".join([label, *rest])
