"""Models that run parts of themselves through torch.utils.checkpoint: measured as what they compute without it."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointFunction, checkpoint, checkpoint_sequential
from torch.utils.checkpoint import _checkpoint_without_reentrant_generator as generator

from analysis.errors import MeasurementError
from analysis.objective import loss_and_gradient
from analysis.problem import make_problem
from analysis.recomputed import nothing_recomputed
from tests.analysis.test_products import assert_right, truth

Run = Callable[..., Tensor]


def plainly(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
    return function(*args)


class Net(nn.Module):
    """Its first layer, a lambda, and its second, a method, are run by `run`."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.first, self.conv, self.head = nn.Conv2d(1, 2, 2), nn.Conv2d(2, 2, 2), nn.Linear(8, 2)
        self.run = run

    def part(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(lambda q: torch.tanh(self.first(q)), x)
        logits: Tensor = self.head(self.run(self.part, x).flatten(1))
        return logits


def made(run: Run) -> tuple[Net, Tensor, Tensor]:
    torch.manual_seed(0)
    return Net(run).double(), torch.randn(5, 1, 4, 4).double(), torch.randint(2, (5,))


@pytest.mark.parametrize(
    "run",
    [
        partial(checkpoint, use_reentrant=False),
        partial(checkpoint, use_reentrant=True),
        partial(checkpoint, use_reentrant=False, context_fn=lambda: (torch.enable_grad(), torch.enable_grad())),
        partial(checkpoint, use_reentrant=True, preserve_rng_state=False),
        lambda function, x: torch_checkpoint.checkpoint(function, x, use_reentrant=False),
        lambda function, x: CheckpointFunction.apply(function, True, x),
        lambda function, x: checkpoint_sequential([function], 1, x, use_reentrant=False),
    ],
)
def test_parts_that_are_checkpointed_are_measured_as_without(run: Run) -> None:
    model, x, y = made(run)
    expected = truth(made(plainly)[0], F.cross_entropy, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of a reentrant part whose inputs need no gradient
        assert_right(model, F.cross_entropy, x, y, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_those_at_the_point_asked_for(reentrant: bool) -> None:
    """At another than the model's own, where what is recomputed with the model's own would be wrong."""
    found = []
    for run in (partial(checkpoint, use_reentrant=reentrant), plainly):
        model, x, y = made(run)
        problem = make_problem(model, "cross_entropy", (x, y))
        leaves = {name: (2 * p + 0.1).detach().requires_grad_() for name, p in problem.parameters.items()}
        (chunk,) = problem.chunks()
        found.append(torch.autograd.grad(problem.chunk_loss(chunk, leaves), list(leaves.values())))
    torch.testing.assert_close(*found)


def test_what_is_recomputed_by_other_ways_is_refused_in_a_true_sentence() -> None:
    def by_its_parts(function: Callable[..., Tensor], x: Tensor) -> Tensor:
        """As torch.distributed._composable does it."""
        around = generator(lambda: function(x), True)
        next(around)
        y = function(x)
        next(around, None)
        return y

    model, x, y = made(by_its_parts)
    with pytest.raises(MeasurementError, match=r"is recomputed where its gradients are taken.*; run it directly"):
        make_problem(model, "cross_entropy", (x, y))


def test_afterwards_torch_checkpoints_again() -> None:
    before, class_before = vars(torch_checkpoint).copy(), vars(CheckpointFunction).copy()
    first, second = nothing_recomputed(), nothing_recomputed()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # blocks of two threads end in any order
    assert "apply" in vars(CheckpointFunction)
    second.__exit__(None, None, None)
    assert vars(torch_checkpoint) == before
    assert vars(CheckpointFunction) == class_before
    model, x, y = made(partial(checkpoint, use_reentrant=False))
    loss_and_gradient(make_problem(model, "cross_entropy", (x, y)))
    calls: list[Any] = []
    copied = copy.deepcopy(model)
    copied.conv.register_forward_hook(lambda *_: calls.append(1))
    F.cross_entropy(copied(x), y).backward()
    assert len(calls) == 2


def test_an_error_within_a_checkpointed_part_is_the_model_s_own() -> None:
    def fails(q: Tensor) -> Tensor:
        raise ValueError("of the model")

    for reentrant in (False, True):
        with nothing_recomputed(), pytest.raises(ValueError, match="of the model"):
            checkpoint(fails, torch.ones(2), use_reentrant=reentrant)
