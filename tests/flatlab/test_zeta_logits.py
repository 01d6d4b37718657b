"""MAN's option beyond the paper, the mean square of the logits: against the naive form, and alike in every engine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatlab.errors import UsageError
from flatlab.federated.config import make_config
from flatlab.federated.engine.batched import BatchedEngine
from flatlab.federated.engine.sequential import SequentialEngine, loss_gradient
from flatlab.federated.parameters import flatten
from flatlab.federated.rounds import Run
from flatlab.federated.world import World


@pytest.mark.parametrize(("zeta", "zeta_logits"), [(0.3, 0.9), (0.0, 0.9), (0.3, 0.0)])
def test_the_gradient_is_that_of_the_naive_form(
    toy_world: Callable[..., World], zeta: float, zeta_logits: float
) -> None:
    world = toy_world(man=True, zeta=zeta, zeta_logits=zeta_logits)
    model = world.new_model()
    w = flatten(dict(model.named_parameters()), world.layout)
    x, y = torch.randn(6, 1, 3, 4, dtype=torch.float64), torch.arange(6) % 4
    loss, gradient = loss_gradient(world, model, x, y, w)

    naive = world.new_model()
    fc1, fc2, fc3 = (layer for layer in naive.modules() if isinstance(layer, nn.Linear))
    a1 = fc1(x.flatten(1)).clamp_min(0)
    a2 = fc2(a1).clamp_min(0)
    z = fc3(a2)
    f = F.cross_entropy(z, y)
    R = (a1**2).mean() + (a2**2).mean()
    expected = torch.autograd.grad(f + zeta / 2 * R + zeta_logits / 2 * (z**2).mean(), list(naive.parameters()))
    torch.testing.assert_close(loss, f.detach())
    torch.testing.assert_close(gradient, torch.cat([g.reshape(-1) for g in expected]))


def test_both_engines_agree(toy_world: Callable[..., World], tmp_path: Path) -> None:
    world = toy_world(man=True, zeta=0.2, zeta_logits=0.7, algorithm="fedsam", rounds=3)
    runs = []
    for name, engine in (("one", SequentialEngine(world)), ("stack", BatchedEngine(world, torch.device("cpu")))):
        run = Run(world, tmp_path / name)
        with engine:
            for _ in range(3):
                run.advance(engine)
        runs.append(run.server.w)
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-12, atol=1e-12)


def test_it_is_refused_where_man_is_off() -> None:
    with pytest.raises(UsageError, match=r"zeta_logits = 0\.5 is part of MAN, which is off; set man to true"):
        make_config({"zeta_logits": 0.5})
    assert make_config({"man": True, "zeta_logits": 0.5}).zeta_logits == 0.5
