"""What the caller of the Python interface has made of torch is neither changed by a run nor part of it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatlab
from flatlab.federated.streams import seeded
from flatlab.interface.run import TrainedRun
from flatlab.torch_settings import usual_settings

SMALL: dict[str, Any] = {
    "clients": 3,
    "rounds": 1,
    "train_samples": 60,
    "test_samples": 50,
    "hidden": [5],
    "progress": False,
    "device": "cpu",
}


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": float64,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "meta": lambda: torch.device("meta"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return flatlab.train(**SMALL, workers=1, keep_clients=[1], out=tmp_path_factory.mktemp("usual") / "a")


def weights(run: TrainedRun) -> dict[str, Tensor]:
    return run.checkpoint.content.state_dict


@pytest.mark.parametrize("engine", ["process", "batched", "streams"])
def test_the_callers_generator_stands_where_it_stood(engine: str, tmp_path: Path) -> None:
    drawn = []
    for out in (None, tmp_path / "a"):
        torch.manual_seed(7)
        if out:
            flatlab.train(**SMALL, workers=1 if engine == "process" else None, engine=engine, out=out)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_a_generator_stands_where_it_stood_also_after_an_error() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(3, "x"):
        torch.rand(1).div_(1 // 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_does_not_depend_on_the_callers_settings(setting: str, run: TrainedRun, tmp_path: Path) -> None:
    with SETTINGS[setting]():
        again = flatlab.train(**SMALL, workers=1, out=tmp_path / "b")
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(run).items())


@pytest.mark.long
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_measurement_does_not_depend_on_the_callers_settings(setting: str, run: TrainedRun) -> None:
    model, data = nn.Linear(2, 1), (torch.rand(6, 2), torch.rand(6, 1))
    measures: list[Callable[[], Any]] = [
        lambda: flatlab.eigs(run, samples=40),
        lambda: flatlab.eigs(model, "mse", data),
        lambda: flatlab.trace(run, samples=40),
        lambda: flatlab.flatness(run, samples=40, max_probes=5, worst_case="l2", batch=20),
        lambda: flatlab.local_global(run.folder / "clients-0001.pt", samples=40),
    ]
    for measure in measures:
        usual = measure()
        with SETTINGS[setting]():
            found = measure()
        assert found.numbers() == usual.numbers()
    with SETTINGS[setting]():
        assert flatlab.verify(run, samples=30).holds
        opened = flatlab.load(run.folder / "final.pt")
        assert [p.dtype for p in opened.model.parameters()] == [torch.float32] * 4
        assert opened.problem(samples=30).samples == 30


def test_the_settings_are_the_callers_again() -> None:
    with float64(), torch.no_grad(), torch.device("meta"):
        with usual_settings():
            x = torch.zeros(1, requires_grad=True) * 2
            assert (x.dtype, x.device.type, x.requires_grad) == (torch.float32, "cpu", True)
        assert (torch.zeros(1).dtype, torch.zeros(1).device.type) == (torch.float64, "meta")
        assert not torch.is_grad_enabled()
