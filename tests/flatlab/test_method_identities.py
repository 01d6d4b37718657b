"""What the flatness-aware and momentum methods become with some coefficients: other methods, or closed forms.

Clients are equal, so that their weights are 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.algorithms.base import Client, Hyper
from flatlab.federated.world import World
from tests.flatlab.test_algorithms import run_rounds

EQUAL: dict[str, Any] = {"sizes": (8,) * 6, "clip": 1e9}
FEDDYN = ("feddyn", {"alpha": 0.2})


@pytest.mark.parametrize(
    ("name", "hyper", "other", "its"),
    [
        ("fedavgm", {"beta": 0.0}, "fedavg", {}),
        ("fedadam", {"beta_1": 0.0, "beta_2": 1.0, "tau": 0.05, "eta_g": 0.1}, "fedavg", {}),  # sqrt(v_0) + tau = 0.1
        ("fedcm", {"alpha": 1.0}, "fedavg", {}),
        ("fedacg", {"gamma": 0.0, "beta": 0.0}, "fedavg", {}),
        ("mofedsam", {"alpha": 1.0, "rho": 0.1}, "fedsam", {"rho": 0.1}),
        ("mofedsam", {"alpha": 0.4, "rho": 0.0}, "fedcm", {"alpha": 0.4}),
        ("fedgamma", {"rho": 0.0}, "scaffold", {}),
        ("fedsmoo", {"alpha": 0.2, "rho": 0.0}, *FEDDYN),
        ("fedlesam", {"rho": 0.0}, "fedavg", {}),
        ("fedlesam-s", {"rho": 0.0}, "scaffold", {}),
        ("fedlesam-d", {"rho": 0.0, "alpha": 0.2}, *FEDDYN),
        ("fednsam", {"gamma": 0.0, "rho": 0.1}, "fedsam", {"rho": 0.1}),
        ("fednsam", {"gamma": 0.6, "rho": 0.0}, "fedacg", {"gamma": 0.6, "beta": 0.0}),
        ("fedgloss", {"rho": 0.0, "rho_l": 0.0, "rho_0": 0.0, "beta": 5.0}, *FEDDYN),
        ("fedswa", {"rho": 1.0, "alpha": 1.0}, "fedavg", {}),
        ("fedgf", {"rho": 0.1, "rho_g": 0.2, "threshold": 1e9}, "fedsam", {"rho": 0.1}),
    ],
)
def test_with_these_coefficients_a_method_is_another(
    name: str,
    hyper: dict[str, float],
    other: str,
    its: dict[str, float],
    toy_world: Callable[..., World],
    tmp_path: Path,
) -> None:
    one = run_rounds(toy_world(**EQUAL, algorithm=name, hyper=hyper), tmp_path / "a", 4)[-1]
    two = run_rounds(toy_world(**EQUAL, algorithm=other, hyper=its), tmp_path / "b", 4)[-1]
    torch.testing.assert_close(one.w, two.w, rtol=1e-10, atol=1e-12)


def test_fedmoswa_without_its_own_is_scaffold(toy_world: Callable[..., World], tmp_path: Path) -> None:
    all_of_them = {**EQUAL, "participation": 1.0, "lr_decay": 1.0}
    ones = {"rho": 1.0, "alpha": 1.0, "gamma": 1.0}
    one = run_rounds(toy_world(**all_of_them, algorithm="fedmoswa", hyper=ones), tmp_path / "a", 4)[-1]
    two = run_rounds(toy_world(**all_of_them, algorithm="scaffold"), tmp_path / "b", 4)[-1]
    torch.testing.assert_close(one.w, two.w, rtol=1e-10, atol=1e-12)


def test_first_rounds_that_are_those_of_others(toy_world: Callable[..., World], tmp_path: Path) -> None:
    """FedSMOO with one step is FedSpeed; FedWMSAM without a perturbation is FedCM; FedLESAM is FedAvg."""
    step = {**EQUAL, "local_epochs": 1, "batch_size": 100}
    pairs: tuple[tuple[dict[str, Any], *tuple[tuple[str, dict[str, float]], ...]], ...] = (
        (step, ("fedsmoo", {"alpha": 0.2, "rho": 0.1}), ("fedspeed", {"alpha": 0.2, "rho": 0.1})),
        (EQUAL, ("fedwmsam", {"alpha": 0.3, "rho": 0.0}), ("fedcm", {"alpha": 0.3})),
        (EQUAL, ("fedlesam", {"rho": 5.0}), ("fedavg", {})),
    )
    for fields, *both in pairs:
        one, two = (
            run_rounds(toy_world(**fields, algorithm=name, hyper=hyper), tmp_path / f"{name}-{n}", 1)[-1]
            for n, (name, hyper) in enumerate(both)
        )
        torch.testing.assert_close(one.w, two.w, rtol=1e-10, atol=1e-12)


def test_fedwmsam_keeps_its_share_without_lam(toy_world: Callable[..., World], tmp_path: Path) -> None:
    world = toy_world(algorithm="fedwmsam", hyper={"alpha": 0.3, "lam": 0.0})
    assert [float(s.vectors["alpha"]) for s in run_rounds(world, tmp_path, 3)] == [0.3] * 3


def one_client(hyper: Hyper, own: dict[str, Tensor], server: dict[str, Tensor], w: Tensor) -> Client[Any]:
    return Client(w, torch.ones(1), own, server, hyper, 5, 0.1, torch.ones_like(w, dtype=torch.bool))


def vectors(count: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(6, dtype=torch.float64, generator=generator) for _ in range(count))


def test_fedsmoos_dual_adds_up_the_perturbations() -> None:
    """mu_K = mu_0 + sum_k eps_k - K s."""
    rules = ALGORITHMS["fedsmoo"]
    w, mu, s = vectors(3)
    client = one_client(rules.hyper(), {"h": mu, "mu": mu, "mu_less_eps": mu}, {"h": w, "s": s}, w)
    total = torch.zeros_like(w)
    assert rules.ascent is not None
    assert rules.during is not None
    for g in vectors(5):
        eps = rules.ascent(client, w, g)
        client = replace(client, own={**client.own, **rules.during(client, eps)})
        total += eps
    torch.testing.assert_close(client.own["mu"], mu + total - 5 * s, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(client.own["mu_less_eps"], client.own["mu"] - eps, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["fedlesam", "fedlesam-s", "fedlesam-d"])
def test_fedlesams_perturbation_has_length_rho_in_every_step(name: str) -> None:
    rules = ALGORITHMS[name]
    w, old, theta, other = vectors(4)
    client = one_client(rules.hyper.model_validate({"rho": 0.3}), {"w_old": old}, {"w_old": old}, w)
    assert rules.lookahead is not None
    first = rules.lookahead(client, theta, 0)
    assert first.norm().item() == pytest.approx(0.3, rel=1e-6)
    torch.testing.assert_close(rules.lookahead(client, other, 7), first)


def test_fedgf_at_c_1_takes_its_gradient_where_the_servers_perturbation_is() -> None:
    rules = ALGORITHMS["fedgf"]
    w, before, theta, g = vectors(4)
    hyper = rules.hyper.model_validate({"rho_g": 0.2})
    server = {"w_before": before, "c": torch.ones(1, dtype=torch.float64)}
    assert rules.ascent is not None
    at = theta + rules.ascent(one_client(hyper, {}, server, w), theta, g)
    torch.testing.assert_close(at, w + 0.2 * (before - w) / (before - w).norm(), rtol=1e-12, atol=1e-14)


def test_fedlesam_can_compare_with_the_round_before(toy_world: Callable[..., World], tmp_path: Path) -> None:
    """With all clients in every round the last seen model is that of the last round; with few it is not."""
    for participation, same in ((1.0, True), (0.5, False)):
        one, two = (
            run_rounds(
                toy_world(
                    algorithm="fedlesam", hyper={"rho": 0.5, "reference": reference}, participation=participation
                ),
                tmp_path / f"{reference}-{participation}",
                4,
            )[-1]
            for reference in ("last_seen", "last_round")
        )
        assert torch.allclose(one.w, two.w, rtol=1e-12) == same


@pytest.mark.parametrize("name", [name for name, algorithm in ALGORITHMS.items() if algorithm.ascent])
@pytest.mark.parametrize("size", [1e-10, 1e-18, 1e-22, 1e-24, 1e-30, 1e-38, 1e-44, 0.0])
def test_a_gradient_that_vanishes_in_float32_throws_no_client_away(name: str, size: float) -> None:
    """Its squares are lost before it is itself; a client that fits its data has such gradients."""
    algorithm = ALGORITHMS[name]
    assert algorithm.ascent is not None
    generator = torch.Generator().manual_seed(0)
    w, g = torch.randn(2, 50, generator=generator).unbind()
    hyper = algorithm.hyper()
    zero = torch.zeros(50)
    first = algorithm.initial(w, hyper)
    own, server = ({key: first.get(key, zero) for key in keys} for keys in (algorithm.own, algorithm.server))
    client = Client(w, torch.ones(1), own, server, hyper, K=5, eta_0=0.1, is_weight=torch.ones(50, dtype=torch.bool))
    longest = algorithm.ascent(client, w, g).norm()
    ascended = algorithm.ascent(client, w, g * size)
    assert ascended.isfinite().all()
    assert ascended.norm() <= longest * (1 + 1e-5)
