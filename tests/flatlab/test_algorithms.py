"""Every algorithm, without and with MAN, against a plain reference written from its equations; and known identities.

The reference works on flat vectors with explicit loops and shares nothing with the code under test but the order of the
samples, which is drawn from the clients' streams.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.engine.base import Engine
from flatlab.federated.engine.batched import BatchedEngine
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.engine.streams import StreamsEngine
from flatlab.federated.local_batches import local_batches
from flatlab.federated.parameters import flatten
from flatlab.federated.participants import sample_clients
from flatlab.federated.rounds import Run
from flatlab.federated.state import ServerState
from flatlab.federated.streams import stream
from flatlab.federated.world import World

ENGINES: dict[str, Callable[[World], Engine]] = {
    "sequential": SequentialEngine,
    "batched": lambda world: BatchedEngine(world, torch.device("cpu")),
    "streams": lambda world: StreamsEngine(world, torch.device("cpu"), slots=2),
}

# Coefficients large enough to be seen at 1e-6 in a few rounds; a clip that bites in some steps and not in others.
HYPER: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.3},
    "scaffold": {},
    "fedsam": {"rho": 0.1},
    "fedasam": {"rho": 0.5, "eta": 0.2},
    "feddyn": {"alpha": 0.2},
    "feddc": {"alpha": 0.2},
    "fedspeed": {"alpha": 0.2, "rho": 0.1},
}


def run_rounds(world: World, folder: Path, rounds: int, engine: str = "sequential") -> list[ServerState]:
    """The server's state after each round."""
    run = Run(world, folder)
    history = []
    with ENGINES[engine](world) as running:
        for _ in range(rounds):
            run.advance(running)
            history.append(run.server)
    return history


# --- the plain reference --------------------------------------------------------------------------------------------


@dataclass
class Reference:
    """All vectors of a federation, in float64, as plainly as can be."""

    world: World
    w: Tensor
    h: list[Tensor] = field(default_factory=list)
    c_i: list[Tensor] = field(default_factory=list)
    last: list[Tensor] = field(default_factory=list)
    c: Tensor = field(default_factory=lambda: torch.zeros(()))

    @classmethod
    def start(cls, world: World) -> "Reference":
        w = flatten(dict(world.new_model().named_parameters()), world.layout)
        zeros = [torch.zeros_like(w) for _ in world.parts]
        return cls(world, w, list(zeros), list(zeros), [w for _ in world.parts], torch.zeros_like(w))


def unpack(theta: Tensor) -> list[tuple[Tensor, Tensor]]:
    layers, start = [], 0
    for fan_in, fan_out in ((12, 6), (6, 5), (5, 4)):
        W = theta[start : start + fan_in * fan_out].view(fan_out, fan_in)
        start += fan_in * fan_out
        layers.append((W, theta[start : start + fan_out]))
        start += fan_out
    return layers


def is_weight() -> Tensor:
    pieces = []
    for fan_in, fan_out in ((12, 6), (6, 5), (5, 4)):
        pieces += [torch.ones(fan_in * fan_out), torch.zeros(fan_out)]
    return torch.cat(pieces).bool()


def loss_gradient(world: World, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    theta = theta.clone().requires_grad_()
    a, penalty = x, torch.zeros(())
    layers = unpack(theta)
    for depth, (W, b) in enumerate(layers):
        a = a @ W.T + b
        if depth < len(layers) - 1:
            a = torch.where(a > 0, a, 0.0)
            penalty = penalty + (a**2).mean(dim=1).mean()
    log_p = a - torch.logsumexp(a, dim=1, keepdim=True)
    loss = -log_p[torch.arange(len(y)), y].mean()
    if world.config.man:
        loss = loss + world.config.zeta / 2 * penalty
    return torch.autograd.grad(loss, theta)[0]


def reference_round(ref: Reference, t: int) -> None:
    world, config, name = ref.world, ref.world.config, ref.world.config.algorithm
    n = [len(part) for part in world.parts]
    N, K = len(n), config.local_epochs * ceil(sum(n) / len(n) / config.batch_size)
    wt = [n_i * N / sum(n) for n_i in n]
    eta_t, eta_0 = config.lr * config.lr_decay**t, config.lr
    p = {**HYPER[name], **config.hyper}
    ids, w = sample_clients(config, t), ref.w
    theta: dict[int, Tensor] = {}
    for i in ids:
        images = world.data.train.images[world.parts[i]].double().flatten(1)
        x_all, y_all = (images / 255 - 0.4) / 0.3, world.data.train.labels[world.parts[i]]
        steps = K if name == "scaffold" else None
        batches = local_batches(n[i], config, stream(config.seed, "client", t, i), augment=False, steps=steps)
        th = w.clone()
        for batch in batches:
            x, y = x_all[batch.index], y_all[batch.index]
            g = loss_gradient(world, th, x, y)
            if name == "fedsam":
                g = loss_gradient(world, th + p["rho"] * g / g.norm(), x, y)
            if name == "fedspeed":
                g = loss_gradient(world, th + p["rho"] * g / (g.norm() + 1e-7), x, y)
            if name == "fedasam":
                T = torch.where(is_weight(), th.abs() + p["eta"], torch.ones_like(th))
                g = loss_gradient(world, th + p["rho"] * T**2 * g / (T * g).norm(), x, y)
            outside = torch.zeros_like(th)
            if name == "fedprox":
                g = g + p["mu"] * (th - w)
            if name == "scaffold":
                g = g - ref.c_i[i] + ref.c / wt[i]
            if name in ("feddyn", "fedspeed"):
                g = g + p["alpha"] / wt[i] * (ref.h[i] - w)
                outside = p["alpha"] / wt[i] * th
            if name == "feddc":
                g = g + p["alpha"] / wt[i] * (th - w + ref.h[i]) - ref.c_i[i] + ref.c / wt[i]
            if g.norm() > config.clip:
                g = config.clip * g / g.norm()
            th = th - eta_t * (g + config.weight_decay * th + outside)
        theta[i] = th
    change_of_c = torch.zeros_like(w)
    for i in ids:
        delta = theta[i] - w
        if name in ("feddyn", "feddc", "fedspeed"):
            ref.h[i] = ref.h[i] + delta
        if name in ("scaffold", "feddc"):
            c = ref.c if name == "scaffold" else ref.c / wt[i]
            new = ref.c_i[i] - c - delta / (K * eta_0)
            change_of_c = change_of_c + wt[i] * (new - ref.c_i[i]) / N
            ref.c_i[i] = new
        ref.last[i] = theta[i]
    ref.c = ref.c + change_of_c
    if name in ("fedavg", "fedprox", "fedsam", "fedasam"):
        ref.w = sum(n[i] * theta[i] for i in ids) / sum(n[i] for i in ids)  # type: ignore[assignment]
    else:
        ref.w = torch.stack([theta[i] for i in ids]).mean(0)
    if name in ("feddyn", "feddc", "fedspeed"):
        over = ids if p.get("dual_mean") == "active" else range(N)
        ref.w = ref.w + torch.stack([ref.h[i] for i in over]).mean(0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("man", [False, True], ids=["plain", "man"])
@pytest.mark.parametrize("name", HYPER)
def test_algorithm_follows_its_equations(
    name: str, man: bool, engine: str, toy_world: Callable[..., World], tmp_path: Path
) -> None:
    world = toy_world(algorithm=name, hyper=HYPER[name], man=man, zeta=0.7, clip=1.2, report="all")
    ref = Reference.start(world)
    for t, server in enumerate(run_rounds(world, tmp_path, 5, engine)):
        reference_round(ref, t)
        torch.testing.assert_close(server.w, ref.w, rtol=1e-9, atol=1e-12)
        n = [len(part) for part in world.parts]
        weights = n if ALGORITHMS[name].weighted else [1] * len(n)
        average = sum(a * last for a, last in zip(weights, ref.last, strict=True)) / sum(weights)
        torch.testing.assert_close(server.all, average, rtol=1e-9, atol=1e-12)


def test_fedspeed_can_average_the_dual_over_the_participants(toy_world: Callable[..., World], tmp_path: Path) -> None:
    world = toy_world(algorithm="fedspeed", hyper={**HYPER["fedspeed"], "dual_mean": "active"})
    ref = Reference.start(world)
    for t, server in enumerate(run_rounds(world, tmp_path, 4)):
        reference_round(ref, t)
        torch.testing.assert_close(server.w, ref.w, rtol=1e-9, atol=1e-12)


# --- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hyper"),
    [("fedprox", {"mu": 0.0}), ("fedsam", {"rho": 0.0}), ("fedasam", {"rho": 0.0})],
)
def test_without_its_coefficient_an_algorithm_is_fedavg(
    name: str, hyper: dict[str, float], toy_world: Callable[..., World], tmp_path: Path
) -> None:
    plain = run_rounds(toy_world(), tmp_path / "a", 4)[-1]
    other = run_rounds(toy_world(algorithm=name, hyper=hyper), tmp_path / "b", 4)[-1]
    torch.testing.assert_close(other.w, plain.w, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["feddyn", "fedspeed"])
def test_without_alpha_the_clients_of_feddyn_train_as_in_fedavg(
    name: str, toy_world: Callable[..., World], tmp_path: Path
) -> None:
    """The first round's participants are FedAvg's; the server still adds the mean of h, as the equation says."""
    hyper = {"alpha": 0.0, **({"rho": 0.0} if name == "fedspeed" else {})}
    world = toy_world(sizes=(6,) * 6)
    plain = run_rounds(world, tmp_path / "a", 1)[-1]
    other = run_rounds(toy_world(sizes=(6,) * 6, algorithm=name, hyper=hyper), tmp_path / "b", 1)[-1]
    torch.testing.assert_close(other.selected, plain.selected, rtol=1e-12, atol=1e-14)
    w = Reference.start(world).w
    participants = len(sample_clients(world.config, 0))
    torch.testing.assert_close(other.w, plain.w + (plain.w - w) * participants / 6)


def test_feddc_without_alpha_takes_scaffolds_first_round(toy_world: Callable[..., World], tmp_path: Path) -> None:
    """With equal sizes and zero controls both are plain SGD, and their controls move alike."""
    scaffold = run_rounds(toy_world(sizes=(8,) * 6, algorithm="scaffold"), tmp_path / "a", 1)[-1]
    feddc = run_rounds(toy_world(sizes=(8,) * 6, algorithm="feddc", hyper={"alpha": 0.0}), tmp_path / "b", 1)[-1]
    torch.testing.assert_close(feddc.selected, scaffold.w)
    torch.testing.assert_close(feddc.vectors["c"], scaffold.vectors["c"])


def test_scaffold_with_one_client_is_sgd(toy_world: Callable[..., World], tmp_path: Path) -> None:
    """c_i = c from the second round on, so that the correction vanishes."""
    one = {"sizes": (9,), "participation": 1.0}
    plain = run_rounds(toy_world(**one), tmp_path / "a", 4)[-1]
    scaffold = run_rounds(toy_world(**one, algorithm="scaffold"), tmp_path / "b", 4)[-1]
    torch.testing.assert_close(scaffold.w, plain.w, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("man", [False, True])
def test_full_batches_and_full_participation_make_one_centralised_step(
    man: bool, toy_world: Callable[..., World], tmp_path: Path
) -> None:
    world = toy_world(participation=1.0, local_epochs=1, batch_size=1000, clip=1e9, man=man)
    server = run_rounds(world, tmp_path, 1)[-1]
    w = Reference.start(world).w
    x = (world.data.train.images.double().flatten(1) / 255 - 0.4) / 0.3
    g = loss_gradient(world, w, x, world.data.train.labels)
    torch.testing.assert_close(server.w, w - 0.2 * (g + 0.01 * w), rtol=1e-10, atol=1e-12)


def test_feddyn_reaches_the_minimum_of_unequal_quadratics() -> None:
    """On f_i = a_i/2 (theta - b_i)^2 exact FedDyn clients settle at argmin sum f_i, not at the mean of their minima."""
    from flatlab.federated.algorithms.base import Client, Round
    from flatlab.federated.algorithms.feddyn import ALGORITHM, FedDynHyper

    a, b, alpha = torch.tensor([1.0, 4.0]).double(), torch.tensor([0.0, 1.0]).double(), 0.5
    w, hyper = torch.zeros(1).double(), FedDynHyper(alpha=alpha)
    own = {"h": torch.zeros(2, 1).double()}
    server = {"h": torch.zeros(1).double()}
    ones = torch.ones(2, 1).double()
    for _ in range(200):
        client = Client(w, ones, own, server, hyper, 1, 1.0, torch.ones(1).bool())
        terms = ALGORITHM.terms(client)
        assert terms.constant is not None
        theta = (a[:, None] * b[:, None] - terms.constant) / (a[:, None] + terms.decay)  # where the local gradient is 0
        after = ALGORITHM.keep(client, theta - w)
        w, server = ALGORITHM.combine(Round(w, theta, ones, ones, own, after, server, hyper, 2))
        own = after
    torch.testing.assert_close(w, (a @ b / a.sum()).view(1), rtol=1e-9, atol=1e-9)
