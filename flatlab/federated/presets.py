"""The paper's cells: every pair of data set and partition, with the reference's hyperparameters for each algorithm.

Source: the paper's public material and its reference implementation (repository vcl-iisc/fedMAN). Where that is silent
or contradicts itself: zeta for CIFAR-10 is not published, and CIFAR-100's is used; zeta for Tiny-ImageNet is 0.1 in the
instructions and 0.2 in the scripts, and the instructions' is used. Methods that came after the paper have their own
sources' hyperparameters, and all else as the paper's methods have it, so that they can be compared: participation,
local epochs and a learning rate that falls by 0.998 a round (FedACG's source has 5 % and 0.995, FedNSAM's half a
cosine).
"""

from dataclasses import dataclass
from typing import Any, Literal

from flatlab.errors import UsageError
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.spelling import in_small_letters

COMMON: dict[str, Any] = {
    "clients": 100,
    "rounds": 500,
    "participation": 0.1,
    "sampling": "bernoulli",
    "local_epochs": 5,
    "batch_size": 50,
    "lr": 0.1,
    "lr_decay": 0.998,
    "weight_decay": 1e-3,
    "clip": 10.0,
    "report": "all",
}
"""What all cells of the paper share."""


@dataclass(frozen=True)
class Preset:
    """A data set, how it is split, and MAN's coefficient on it."""

    dataset: Literal["cifar10", "cifar100", "tiny-imagenet"]
    delta: float | None  # concentration of the Dirichlet split; None: IID
    zeta: float


PRESETS: dict[str, Preset] = {
    f"{dataset}-{'iid' if delta is None else f'dir{delta}'}": Preset(dataset, delta, zeta)  # type: ignore[arg-type]
    for dataset, zeta, deltas in (
        ("cifar10", 0.15, (0.3, 0.6)),
        ("cifar100", 0.15, (0.3, 0.6, None)),
        ("tiny-imagenet", 0.1, (0.3, 0.6, None)),
    )
    for delta in deltas
}
"""The eight pairs of the paper and its seed results."""


def preset_fields(name: str, algorithm: str, man: bool) -> dict[str, Any]:
    """Return the fields of the run that the three stand for; raises `UsageError` if there is no such preset."""
    name = name.lower()
    if name not in PRESETS:
        raise UsageError(f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    split = {"partition": "iid"} if preset.delta is None else {"partition": "dirichlet", "delta": preset.delta}
    return {
        "dataset": preset.dataset,
        **split,
        **COMMON,
        "zeta": preset.zeta,
        "algorithm": algorithm,
        "man": man,
        "hyper": preset_hyper(preset, algorithm, man),
    }


def preset_hyper(preset: Preset, algorithm: str, man: bool) -> dict[str, Any]:
    """Return the algorithm's hyperparameters: its own defaults, but for the cells that its source tuned apart."""
    algorithm = in_small_letters({"algorithm": algorithm})["algorithm"]
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        return {}  # a user's own, or a file's mistake, which the run's own validation names
    hyper = ALGORITHMS[algorithm].hyper().model_dump()
    iid, tiny = preset.delta is None, preset.dataset == "tiny-imagenet"
    if algorithm == "fedsam" and tiny and iid:
        hyper["rho"] = 0.01 if man else 0.03
    if algorithm == "fedasam" and (tiny or (iid and man)):
        hyper["rho"] = 0.1
    if algorithm == "fedgloss" and preset.dataset == "cifar10":
        hyper |= {"rho": 0.15, "rho_l": 0.15, "beta": 10.0, "warmup": COMMON["rounds"] // 5}
    return hyper
