"""The flatness-aware and momentum methods against a plain reference written from their equations.

The reference keeps every vector by name and client, and shares nothing with the code under test but the order of the
samples; the gradient is that of `test_algorithms`, written out there.
"""

from collections import defaultdict
from collections.abc import Callable
from math import ceil, cos, pi
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.local_batches import local_batches
from flatlab.federated.parameters import flatten
from flatlab.federated.participants import sample_clients
from flatlab.federated.streams import stream
from flatlab.federated.world import World
from tests.flatlab.test_algorithms import ENGINES, HYPER, loss_gradient, run_rounds

# Coefficients large enough to be seen at 1e-9 in a few rounds.
FLAT: dict[str, dict[str, Any]] = {
    "fedavgm": {"beta": 0.5},
    "fedadam": {"beta_1": 0.6, "beta_2": 0.7, "tau": 0.05, "eta_g": 0.3},
    "fedcm": {"alpha": 0.4},
    "fedacg": {"gamma": 0.6, "beta": 0.2},
    "mofedsam": {"alpha": 0.4, "rho": 0.1},
    "fedgamma": {"rho": 0.1},
    "fedsmoo": {"alpha": 0.2, "rho": 0.1},
    "fedlesam": {"rho": 0.1},
    "fedlesam-s": {"rho": 0.1},
    "fedlesam-d": {"rho": 0.1, "alpha": 0.2},
    "fednsam": {"gamma": 0.6, "rho": 0.1},
    "fedgloss": {"rho": 0.1, "rho_l": 0.2, "beta": 4.0, "rho_0": 0.01, "warmup": 3},
    "fedswa": {"rho": 0.3, "alpha": 1.3},
    "fedmoswa": {"rho": 0.3, "alpha": 1.3, "gamma": 0.4},
    "fedwmsam": {"alpha": 0.3, "lam": 0.2, "rho": 0.1},
    "fedgf": {"rho": 0.1, "rho_g": 0.2, "threshold": 0.28, "window": 3},
}
EXACT = ("fedgamma", "fedlesam-s", "fedswa", "fedmoswa", "fedwmsam")


class Reference:
    """All vectors of a federation in float64; `s` is the server's by name, `c[name][i]` a client's."""

    def __init__(self, world: World) -> None:
        self.world, self.name = world, world.config.algorithm
        self.p: dict[str, Any] = world.config.hyper
        self.w = flatten(dict(world.new_model().named_parameters()), world.layout)
        zero = torch.zeros_like(self.w)
        self.s: dict[str, Tensor] = defaultdict(lambda: zero)
        self.c: dict[str, dict[int, Tensor]] = defaultdict(lambda: defaultdict(lambda: zero))
        self.alpha = self.p.get("alpha", 0.0)
        self.share, self.drifts = 0.0, list[bool]()
        if self.name == "fedadam":
            self.s["v"] = zero + self.p["tau"] ** 2
        for i in range(len(world.parts)):
            self.c["w_old"][i] = self.w
        self.s["w_before"] = self.w

    def round(self, t: int) -> None:
        world, config, p, name = self.world, self.world.config, self.p, self.name
        n = [len(part) for part in world.parts]
        N, K = len(n), config.local_epochs * ceil(sum(n) / len(n) / config.batch_size)
        wt = [n_i * N / sum(n) for n_i in n]
        eta, ids = config.lr * config.lr_decay**t, sample_clients(config, t)
        if name == "fednsam":
            eta = eta * (1 + cos(pi * t / config.rounds)) / 2
        radius = {}
        if name == "fedgloss":
            for which in ("rho", "rho_l"):
                radius[which] = p["rho_0"] + (p[which] - p["rho_0"]) * min(t / p["warmup"], 1)
        begin = self.begin(radius)
        theta = {i: self.train(i, t, begin, wt[i], eta, K, radius) for i in ids}
        self.combine(ids, theta, begin, n, wt, eta, K, t)

    def begin(self, radius: dict[str, float]) -> Tensor:
        if self.name in ("fedacg", "fednsam"):
            return torch.add(self.w, self.s["m"], alpha=self.p["gamma"])
        if self.name == "fedgloss" and self.s["P"].norm() > 0:
            return torch.add(self.w, self.s["P"], alpha=radius["rho"] / float(self.s["P"].norm()))
        return self.w

    def train(self, i: int, t: int, w: Tensor, wt: float, eta: float, K: int, radius: dict[str, float]) -> Tensor:
        world, config, p, name = self.world, self.world.config, self.p, self.name
        images = world.data.train.images[world.parts[i]].double().flatten(1)
        x_all, y_all = (images / 255 - 0.4) / 0.3, world.data.train.labels[world.parts[i]]
        steps = K if name in EXACT else None
        batches = local_batches(len(y_all), config, stream(config.seed, "client", t, i), augment=False, steps=steps)
        th = w.clone()
        if name == "fedwmsam":
            m_i = self.s["m"] + self.alpha / (1 - self.alpha) * (self.s["c"] / wt - self.c["c"][i])
        for k, batch in enumerate(batches):
            x, y = x_all[batch.index], y_all[batch.index]
            at = th
            if name.startswith("fedlesam"):
                back = self.c["w_old"][i] - w
                at = th + p["rho"] * back / (back.norm() + 1e-7)
            if name == "fedwmsam":
                v = th - (w - k * eta * m_i)
                at = th + p["rho"] * v / (v.norm() + 1e-7)
            g = loss_gradient(world, at, x, y)
            if name in ("mofedsam", "fedgamma", "fednsam"):
                g = loss_gradient(world, th + p["rho"] * g / g.norm(), x, y)
            if name == "fedgloss":
                g = loss_gradient(world, th + radius["rho_l"] * g / g.norm(), x, y)
            if name == "fedgf":
                step = self.s["w_before"] - w
                ahead = w + p["rho_g"] * step / step.norm() if step.norm() > 0 else w
                g = loss_gradient(
                    world, th + (1 - self.share) * p["rho"] * g / g.norm() + self.share * (ahead - th), x, y
                )
            if name == "fedsmoo":
                u = g - self.c["mu"][i] - self.s["s"]
                eps = p["rho"] * u / (u.norm() + 1e-7)
                self.c["mu"][i] = self.c["mu"][i] + eps - self.s["s"]
                self.c["without"][i] = self.c["mu"][i] - eps
                g = loss_gradient(world, th + eps, x, y)
            outside = torch.zeros_like(th)
            if name in ("fedcm", "mofedsam"):
                g = p["alpha"] * g + (1 - p["alpha"]) * self.s["m"]
            if name == "fedwmsam":
                g = self.alpha * g + (1 - self.alpha) * m_i
            if name in ("fedgamma", "fedlesam-s"):
                g = g - self.c["c"][i] + self.s["c"] / wt
            if name == "fedmoswa":
                g = g - self.c["c"][i] + self.s["m"]
            if name in ("fedsmoo", "fedlesam-d"):
                g = g + p["alpha"] / wt * (self.c["h"][i] - w)
                outside = p["alpha"] / wt * th
            if name == "fedacg":
                g = g + p["beta"] * (th - w)
            if name == "fedgloss":
                g = g - self.c["sigma"][i] + (th - w) / p["beta"]
            if g.norm() > config.clip:
                g = config.clip * g / g.norm()
            rate = eta * (1 - (1 - p["rho"]) * k / K) if name in ("fedswa", "fedmoswa") else eta
            th = th - rate * (g + config.weight_decay * th + outside)
        return th

    def combine(
        self, ids: list[int], theta: dict[int, Tensor], begin: Tensor, n: list[int], wt: list[float], eta: float,
        K: int, t: int,
    ) -> None:  # fmt: skip
        p, name, N, w = self.p, self.name, len(n), self.w
        mean = torch.stack([theta[i] for i in ids]).mean(0)
        weighted = torch.stack([n[i] * theta[i] for i in ids]).sum(0) / sum(n[i] for i in ids)
        D, eta_0 = mean - begin, self.world.config.lr
        cosine = torch.stack([torch.cosine_similarity(theta[i] - w, -self.s["m"], dim=0) for i in ids]).mean()
        if name in ("fedgamma", "fedlesam-s", "fedwmsam"):
            change = torch.zeros_like(w)
            for i in ids:
                new = self.c["c"][i] - self.s["c"] - (theta[i] - w) / (K * eta_0)
                change = change + wt[i] * (new - self.c["c"][i]) / N
                self.c["c"][i] = new
            self.s["c"] = self.s["c"] + change
        if name in ("fedsmoo", "fedlesam-d"):
            for i in ids:
                self.c["h"][i] = self.c["h"][i] + theta[i] - w
        if name == "fedmoswa":
            rates = sum(eta * (1 - (1 - p["rho"]) * k / K) for k in range(K))
            for i in ids:
                self.c["c"][i] = self.c["c"][i] - self.s["m"] - (theta[i] - w) / rates
        for i in ids:
            self.c["w_old"][i] = w
        self.w = mean
        if name in ("fedlesam", "fedgf"):
            self.w = weighted
        if name == "fedavgm":
            self.s["m"] = p["beta"] * self.s["m"] + D
            self.w = w + self.s["m"]
        if name == "fedadam":
            self.s["m"] = p["beta_1"] * self.s["m"] + (1 - p["beta_1"]) * D
            self.s["v"] = p["beta_2"] * self.s["v"] + (1 - p["beta_2"]) * D**2
            self.w = w + p["eta_g"] * self.s["m"] / (self.s["v"] ** 0.5 + p["tau"])
        if name in ("fedcm", "mofedsam", "fedwmsam"):
            self.s["m"] = -D / (K * eta)
        if name == "fedwmsam":
            self.alpha = (1 - p["lam"]) * self.alpha + p["lam"] * min(max(1 - float(cosine), 0.1), 0.9)
        if name in ("fedacg", "fednsam"):
            self.s["m"] = p["gamma"] * self.s["m"] + D
        if name in ("fedsmoo", "fedlesam-d"):
            self.w = mean + torch.stack([self.c["h"][i] for i in range(N)]).mean(0)
        if name == "fedsmoo":
            S = torch.stack([self.c["without"][i] for i in ids]).mean(0)
            self.s["s"] = p["rho"] * S / (S.norm() + 1e-7)
        if name == "fedgloss":
            for i in ids:
                self.c["sigma"][i] = self.c["sigma"][i] - (theta[i] - begin) / p["beta"]
                self.s["sigma"] = self.s["sigma"] - (theta[i] - begin) / (p["beta"] * N)
            self.w, self.s["P"] = w + D - p["beta"] * self.s["sigma"], -D
        if name in ("fedswa", "fedmoswa"):
            self.w = w + p["alpha"] * D
        if name == "fedmoswa":
            mean_c = torch.stack([self.c["c"][i] for i in ids]).mean(0)
            self.s["m"] = self.s["m"] + p["gamma"] * (mean_c - self.s["m"])
        if name == "fedgf":
            self.drifts.append(float(torch.stack([(theta[i] - w).norm() for i in ids]).mean()) > p["threshold"])
            recent = self.drifts[-p["window"] :]
            self.share, self.s["w_before"] = sum(recent) / len(recent), w


def test_the_tables_cover_every_algorithm() -> None:
    assert set(HYPER) | set(FLAT) == set(ALGORITHMS)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("man", [False, True], ids=["plain", "man"])
@pytest.mark.parametrize("name", FLAT)
def test_method_follows_its_equations(
    name: str, man: bool, engine: str, toy_world: Callable[..., World], tmp_path: Path
) -> None:
    schedule = "cosine" if name == "fednsam" else "constant"
    fields = {"hyper": FLAT[name], "clip": 1.2, "rounds": 6, "lr_decay": 0.9, "lr_schedule": schedule}
    world = toy_world(algorithm=name, man=man, zeta=0.7, **fields)
    ref = Reference(world)
    for t, server in enumerate(run_rounds(world, tmp_path, 6, engine)):
        ref.round(t)
        torch.testing.assert_close(server.w, ref.w, rtol=1e-9, atol=1e-12)
    if name == "fedgf":  # both sides of the threshold were seen
        assert {True, False} == set(ref.drifts)


# --- identities: each with equal clients, whose weights are 1 --------------------------------------------------------
