"""The presets: every method's hyperparameters as its source has them, and what a source has for one data set alone."""

from typing import Any

import pytest

from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.presets import PRESETS, preset_fields

SOURCES: dict[str, dict[str, Any]] = {
    "fedavgm": {"beta": 0.9},
    "fedadam": {"beta_1": 0.9, "beta_2": 0.99, "tau": 0.01, "eta_g": 0.1},
    "fedcm": {"alpha": 0.1},
    "fedacg": {"gamma": 0.85, "beta": 2e-3},
    "mofedsam": {"alpha": 0.1, "rho": 0.01},
    "fedgamma": {"rho": 0.01},
    "fedsmoo": {"alpha": 0.1, "rho": 0.1},
    "fedlesam": {"rho": 0.01, "reference": "last_seen"},
    "fedlesam-s": {"rho": 0.01, "reference": "last_seen"},
    "fedlesam-d": {"rho": 0.01, "reference": "last_seen", "alpha": 0.01},
    "fednsam": {"gamma": 0.85, "rho": 0.05},
    "fedgloss": {"rho": 0.01, "rho_l": 0.2, "beta": 100.0, "rho_0": 1e-3, "warmup": 375},
    "fedswa": {"rho": 0.1, "alpha": 1.5},
    "fedmoswa": {"rho": 0.1, "alpha": 1.5, "gamma": 0.2},
    "fedwmsam": {"alpha": 0.1, "lam": 0.01, "rho": 0.01},
    "fedgf": {"rho": 0.05, "rho_g": 0.05, "threshold": 0.2, "window": 30},
}
"""What the methods that came after the paper have on CIFAR-100 (each file's docstring says where that is from)."""


@pytest.mark.parametrize("name", SOURCES)
def test_a_method_has_the_hyperparameters_of_its_source(name: str) -> None:
    assert preset_fields("cifar100-dir0.3", name, man=False)["hyper"] == SOURCES[name]


@pytest.mark.parametrize("man", [False, True])
@pytest.mark.parametrize("name", ["cifar10-dir0.3", "cifar10-dir0.6"])
def test_fedgloss_has_other_ones_on_cifar10(name: str, man: bool) -> None:
    """Caldarola et al., CVPR 2025: both radii 0.15, beta 10, a warm-up over 2,000 of 10,000 rounds."""
    expected = {"rho": 0.15, "rho_l": 0.15, "beta": 10.0, "rho_0": 1e-3, "warmup": 100}
    assert preset_fields(name, "fedgloss", man)["hyper"] == expected


def test_nothing_else_was_tuned_apart() -> None:
    apart = {
        (algorithm, name)
        for algorithm, rules in ALGORITHMS.items()
        for name in PRESETS
        for man in (False, True)
        if preset_fields(name, algorithm, man)["hyper"] != rules.hyper().model_dump()
    }
    assert {algorithm for algorithm, _ in apart} == {"fedsam", "fedasam", "fedgloss"}
    assert {name for algorithm, name in apart if algorithm == "fedgloss"} == {"cifar10-dir0.3", "cifar10-dir0.6"}
