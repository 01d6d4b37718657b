"""How methods and partitions are called in print."""

from collections.abc import Sequence

ALGORITHM_NAMES = {
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "fedsam": "FedSAM",
    "fedasam": "FedASAM",
    "feddyn": "FedDyn",
    "feddc": "FedDC",
    "fedspeed": "FedSpeed",
}

REPORTED = {
    "server": "the model that the server sends out",
    "selected": "the mean of the models of the round's participants",
    "all": "the mean over all clients of each one's last model",
}
"""The model that a run reports, `RunConfig.report`, in words."""


def algorithm_label(name: str) -> str:
    """The algorithm's usual spelling."""
    return ALGORITHM_NAMES.get(name, name)


def man_label(man: bool, zetas: Sequence[float]) -> str:
    """Without or with MAN, and its coefficients."""
    return f"with MAN (ζ = {' or '.join(f'{zeta:g}' for zeta in zetas)})" if man else "without MAN"


def partition_label(row: str) -> str:
    """IID, or Dirichlet and its concentration; and what else the name of a row says."""
    name, *rest = row.split("; ", 1)
    return ", ".join(["IID" if name == "iid" else f"Dirichlet {name.removeprefix('dirichlet-')}", *rest])
