"""What is timed on a GPU is waited for."""

import pytest
import torch
from torch import nn

from analysis.problem import make_problem
from flatlab.clock import seconds_on
from flatlab.measuring.expense import PRODUCT_GRADIENTS, product_seconds


def test_the_clock_waits_for_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert seconds_on(torch.device("cpu")) <= seconds_on(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]


def test_a_product_is_timed_by_that_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((3.0, 5.0))
    monkeypatch.setattr("flatlab.measuring.expense.seconds_on", lambda device: next(times))
    problem = make_problem(nn.Linear(2, 2), "cross_entropy", (torch.randn(6, 2), torch.arange(6) % 2))
    assert product_seconds(problem) == pytest.approx(2 * PRODUCT_GRADIENTS)
