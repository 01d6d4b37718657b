"""How methods and partitions are called in print."""

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


def man_label(man: bool, zeta: float) -> str:
    """Without or with MAN, and its coefficient."""
    return f"with MAN (ζ = {zeta:g})" if man else "without MAN"


def partition_label(name: str) -> str:
    """IID, or Dirichlet and its concentration."""
    return "IID" if name == "iid" else f"Dirichlet {name.removeprefix('dirichlet-')}"
