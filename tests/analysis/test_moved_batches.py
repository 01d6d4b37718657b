"""Batches on their way to a device."""

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from analysis.batches import moved


class Moves(TorchFunctionMode):
    """Notes how every `to` is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.to:
            self.asked.append(kwargs)
        return function(*args, **(kwargs or {}))


def test_a_cpu_does_not_read_what_has_not_arrived() -> None:
    """From a GPU, a copy that nobody waits for is read before it is there."""
    with Moves() as moves:
        moved(((torch.randn(4, 3),), torch.arange(4)), torch.device("cpu"), torch.float64)
    assert [asked.get("non_blocking", False) for asked in moves.asked] == [False, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_large_batch_comes_whole_from_a_gpu() -> None:
    x = torch.randn(1 << 26, device="cuda")
    for _ in range(5):
        _inputs, targets = moved(((x,), x), torch.device("cpu"), torch.float32)
        assert torch.equal(targets, x.cpu())
