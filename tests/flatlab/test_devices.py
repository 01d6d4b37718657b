"""Which devices a measurement takes, and which GPU each of several processes."""

import pytest
import torch

from flatlab.errors import UsageError
from flatlab.measuring.ranks import joined
from flatlab.measuring.subjects import is_here


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_a_cpu_is_always_here(name: str) -> None:
    assert is_here(name)


@pytest.mark.parametrize("name", ["cuda:99", "cudafoo", "cuda:", "meta", "tpu", ""])
def test_what_no_device_is_called(name: str) -> None:
    assert not is_here(name)


@pytest.mark.parametrize(
    ("device", "said"),
    [("cuda:1", "--device cuda, not cuda:1"), ("cuda", r"a process 100 here, and there are \d+ GPUs")],
)
def test_a_process_of_torchrun_takes_the_gpu_of_its_number(
    device: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(UsageError, match=said), joined(device):
        pass
