"""What the Python interface takes beside what it is for, and what it refuses in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

import flatlab
from analysis.errors import MeasurementError
from flatlab.errors import UsageError

LINE = nn.Linear(1, 2)
DATA = (torch.ones(4, 1), torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: flatlab.eigs(LINE), "with its loss and data"),
        (lambda: flatlab.eigs("nothing.pt"), "There is no file nothing.pt"),
        (lambda: flatlab.eigs(5), "not 5"),  # type: ignore[arg-type]
        (lambda: flatlab.eigs("nothing.pt", "mse"), "a checkpoint brings its own"),
        (lambda: flatlab.eigs(LINE, "mess", DATA), "Unknown loss 'mess'"),
        (lambda: flatlab.eigs(LINE, None, DATA, samples=5), "ask for 1 to 4"),
        (lambda: flatlab.eigs(LINE, None, DATA, top_k=0), "--top-k"),
        (lambda: flatlab.eigs(LINE, None, DATA, max_iter=0), "--max-iter"),
        (lambda: flatlab.eigs(LINE, None, DATA, layers=["fc9"]), "no layer 'fc9'"),
        (lambda: flatlab.eigs(LINE, data=(DATA[0], torch.randn(4, 2))), 'name the loss they are for (loss="mse"'),
        (lambda: flatlab.trace(LINE, data=(DATA[0], torch.randn(4, 2))), "do not add up to one"),
        (lambda: flatlab.eigs(nn.Linear, "mse", DATA), "not a type"),  # type: ignore[arg-type]
        (lambda: flatlab.eigs(LINE, "mse", (DATA[0], [0, 1, 0, 1])), "must be one tensor"),
        (lambda: flatlab.eigs(LINE, "mse", (DATA[0].to_sparse(), DATA[1])), "is sparse"),
        (lambda: flatlab.eigs(LINE, lambda z, y: (z.sum(), {}), DATA), "must return a scalar"),  # type: ignore[arg-type,return-value]
        (lambda: flatlab.client_eigs(LINE), "needs a checkpoint"),
        (lambda: flatlab.batch_eigs(LINE, None, DATA, batch_size=0), "--batch-size"),
        (lambda: flatlab.batch_eigs(LINE, None, DATA, batch_size=5), "5"),
        (lambda: flatlab.trace(LINE, None, DATA, max_probes=0), "--max-probes"),
        (lambda: flatlab.flatness(LINE, None, DATA, radius=1.0), "name its norm"),
        (lambda: flatlab.flatness(LINE, None, DATA, worst_case="l3"), "--worst-case is linf or l2"),
        (lambda: flatlab.flatness(LINE, None, DATA, worst_case="l2", radius=0.0), "--radius"),
        (lambda: flatlab.flatness(LINE, None, DATA, worst_case="l2", ascent_steps=0), "--ascent-steps"),
        (lambda: flatlab.eigs(LINE, None, DATA, which="middle"), "--which"),
        (lambda: flatlab.trace(LINE, None, DATA, matrix="jacobian"), "--matrix"),
        (lambda: flatlab.density(LINE, None, DATA, matrix="jacobian"), "--matrix"),
        (lambda: flatlab.density(LINE, None, DATA, depth=0), "--depth"),
        (lambda: flatlab.density(LINE, None, DATA, probes=0), "--probes"),
        (lambda: flatlab.surface(LINE, None, DATA, points=1), "--points"),
        (lambda: flatlab.verify(LINE, None, DATA, samples=0), "--samples"),
        (lambda: flatlab.eigs(LINE, "cross_entropy", (torch.ones(4, 3), DATA[1])), "fails on these data: RuntimeError"),
        (lambda: flatlab.train(nonsense=1), "Unknown field 'nonsense'"),
        (lambda: flatlab.train(workers=0), "--workers"),
        (lambda: flatlab.train(track_eigs=0), "--track-eigs"),
        (lambda: flatlab.train(save_every=-1), "--save-every"),
        (lambda: flatlab.train(save_every="often"), "--save-every"),  # type: ignore[arg-type]
        (lambda: flatlab.train(engine="flower", patience="long"), "--patience"),  # type: ignore[arg-type]
        (lambda: flatlab.train(hyper={"rho": 1}), "no hyperparameter 'rho'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(call: Callable[[], object], says: str) -> None:
    with pytest.raises((UsageError, MeasurementError)) as raised:
        call()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_numbers_of_numpy_and_batches_as_a_loader_makes_them_are_taken(tmp_path: Path) -> None:
    one, two = (cast(int, number) for number in np.arange(3)[1:])
    fields: dict[str, Any] = {"clients": 3, "train_samples": 60, "hidden": [two], "lr": np.float64(0.1), "seed": one}
    run = flatlab.train(**fields, rounds=one, workers=one, progress=False, out=tmp_path / "run")
    assert type(run.config.seed) is int
    result = flatlab.eigs(run, samples=cast(int, np.int64(40)), top_k=two)
    assert json.loads(json.dumps(result.to_dict()))["settings"]["k"] == 2
    listed = flatlab.eigs(LINE, None, list(DATA)).eigenvalues[0].value
    assert listed == flatlab.eigs(LINE, None, DATA).eigenvalues[0].value


@pytest.mark.parametrize("axis", [1, 2])
def test_probabilities_of_classes_in_any_dimension_need_no_loss_by_name(axis: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(5, 5).double(), torch.randn(6, 4, 5).double()
    y = torch.randn(6, 4, 5).double().softmax(axis)
    expected = -(y * model(x).log_softmax(axis)).sum(axis).mean().item()
    assert flatlab.eigs(model, data=(x, y), dtype="float64").loss == pytest.approx(expected)


def test_two_pairs_are_said_to_be_batches() -> None:
    with pytest.warns(UserWarning, match="two pairs of these data are taken for two batches"):
        found = flatlab.eigs(LINE, "cross_entropy", (DATA, DATA))
    assert found.to_dict()["data"]["samples"] == 8
    assert len(found.to_dict()["parameters"]) == 16  # whose, as a digest


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    run = flatlab.train(
        rounds=1, clients=4, train_samples=50, keep_clients=cast(int, np.int64(1)), out=tmp_path, progress=False
    )
    assert (run.folder / "clients-0001.pt").exists()


def test_a_model_with_a_sparse_buffer_is_measured() -> None:
    model = nn.Linear(1, 2)
    model.register_buffer("adjacency", torch.eye(3).to_sparse())
    model.register_buffer("turned", torch.ones(2, dtype=torch.cfloat).conj())
    found = flatlab.eigs(model, None, DATA, layers=[]).to_dict()
    assert found["parameters"] != flatlab.eigs(LINE, None, DATA, layers=[]).to_dict()["parameters"]
