"""The stack of toys trains every network as it would train alone, with flatlab's own penalty."""

import copy

import pytest
import torch
from torch.nn import functional as F

from analysis.theory import battery as batteries
from analysis.theory.battery import along_training, battery, shifts
from analysis.theory.statements import broken
from analysis.theory.toys import BATCH, LR, WEIGHT_DECAY, Penalty, Toys, accuracy, load_toys, new_toy, train_stack
from flatlab.federated.man import penalty_terms
from flatlab.federated.streams import stream


@pytest.fixture(scope="module")
def toys() -> Toys:
    return load_toys(2)


def test_the_images_are_the_digits_averaged(toys: Toys) -> None:
    full = load_toys()
    assert full.shape == (1, 8, 8)
    assert toys.shape == (1, 4, 4)
    torch.testing.assert_close(toys.x[3, 0, 1, 2], full.x[3, 0, 2:4, 4:6].mean())
    torch.testing.assert_close(full.x.mean(), torch.tensor(0.0).double(), atol=1e-3, rtol=0)


def test_a_network_in_the_stack_trains_as_alone(toys: Toys) -> None:
    penalties = [Penalty(), Penalty(0.4), Penalty(0.2, 0.7)]
    start = [new_toy(toys, (5, 4), "tanh", seed) for seed in range(3)]
    stack = copy.deepcopy(start)
    train_stack(stack, penalties, toys, range(2))
    for model, penalty, trained in zip(start, penalties, stack, strict=True):
        for step in range(2):
            batch = torch.randint(len(toys.y), (BATCH,), generator=stream(0, "toy batch", step))
            logits, squares = penalty_terms(model, toys.x[batch])
            loss = F.cross_entropy(logits, toys.y[batch]) + penalty.zeta / 2 * torch.stack(squares).sum()
            loss = loss + penalty.zeta_logits / 2 * logits.square().mean()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.sub_(LR * (gradient + WEIGHT_DECAY * parameter))
        for ours, expected in zip(trained.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, expected)


def test_training_on_is_training_in_one(toys: Toys) -> None:
    once, twice = (new_toy(toys, (5,), "relu", 0) for _ in range(2))
    train_stack([once], [Penalty(0.1)], toys, range(6))
    train_stack([twice], [Penalty(0.1)], toys, range(2))
    train_stack([twice], [Penalty(0.1)], toys, range(2, 6))
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))


def test_a_toy_learns(toys: Toys) -> None:
    model = new_toy(toys, (12,), "relu", 0)
    train_stack([model], [Penalty()], toys, range(400))
    assert accuracy(model, toys) > 0.7


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer and smaller toys."""
    monkeypatch.setattr(batteries, "DEPTHS", (1, 2))
    monkeypatch.setattr(batteries, "WIDTHS", (4,))
    monkeypatch.setattr(batteries, "SEEDS", (0,))
    monkeypatch.setattr(batteries, "STEPS", 40)
    monkeypatch.setattr(batteries, "MOMENTS", (0, 50, 400))
    monkeypatch.setattr(batteries, "SHIFT_STEPS", 1000)
    monkeypatch.setattr(batteries, "SHIFT_SEEDS", (0,))
    monkeypatch.setattr(batteries, "SHIFT_ZETAS", (0.0, 0.5))


@pytest.mark.usefixtures("small")
def test_the_battery_covers_every_kind_of_toy() -> None:
    cases = list(battery())
    assert len(cases) == 2 * 2 * (1 + 2)
    assert {(case.depth, case.activation, case.trained, case.zeta) for case in cases} >= {
        (1, "relu", False, 0.0), (2, "tanh", True, 0.5)
    }  # fmt: skip
    assert not broken(check for case in cases for check in case.checks)
    failing = [case for case in cases if any(c.statement == "S1" and c.outcome == "fails" for c in case.checks)]
    assert failing
    assert all(case.smallest < 0 for case in failing)


@pytest.mark.usefixtures("small")
def test_s1_turns_from_failing_to_holding_while_s2_holds_throughout() -> None:
    moments = [moment for moment in along_training() if moment.zeta == 0]
    assert [moment.step for moment in moments] == [0, 50, 400]
    assert moments[0].slack1 < 0 < moments[-1].slack1
    assert all(moment.slack2 > 0 for moment in moments)
    assert moments[0].smallest / moments[0].top < moments[-1].smallest / moments[-1].top


@pytest.mark.long
@pytest.mark.usefixtures("small")
def test_the_known_failure_and_its_remedy() -> None:
    found = {(shift.zeta, shift.zeta_logits): shift for shift in shifts()}
    plain, man, remedy = (found[key] for key in ((0.0, 0.0), (0.5, 0.0), (0.5, 4.0)))
    assert man.layers[0].top > 2 * plain.layers[0].top  # the first layer sharpens,
    assert all(a.top < b.top for a, b in zip(man.layers[1:], plain.layers[1:], strict=True))  # the others flatten
    assert man.top > plain.top
    assert man.layers[0].input_norm2 == pytest.approx(plain.layers[0].input_norm2)  # its norm cannot move,
    assert man.layers[0].curvature > 2 * plain.layers[0].curvature  # the curvature behind it does
    assert remedy.top < man.top
