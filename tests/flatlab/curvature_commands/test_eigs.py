"""`eigs` as a user calls it, against dense Hessians of a small MLP on digits."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flatlab.data import normalise
from flatlab.federated.world import World
from flatlab.measuring import loss_samples
from flatlab.measuring.subjects import Measurement, open_checkpoint
from flatlab.runs.checkpoint import load_checkpoint, rebuild
from tests.flatlab.dense_mlp import Dense, Run, dense, tops

EXACT = ("--dtype", "float64", "--tol", "1e-7")


def test_full_takes_all_samples(run: Run, checkpoints: tuple[Path, Path], truth: Dense) -> None:
    result = run("eigs", checkpoints[0], "--full", "--top-k", 3, *EXACT)
    assert result["data"]["samples"] == 200
    assert result["sampling"] is None
    assert result["loss"] == pytest.approx(truth.loss)
    assert tops(result["global"]) == pytest.approx(truth.eigenvalues()[:3].tolist(), rel=1e-6)
    for layer in result["layers"]:
        assert tops(layer) == pytest.approx(truth.eigenvalues(layer["name"])[:3].tolist(), rel=1e-6)
    assert json.loads(checkpoints[0].with_suffix(".eigs.json").read_text()) == result


def test_a_subset_says_how_far_its_top_eigenvalue_moves(
    run: Run, checkpoints: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoints[0]
    result = run("eigs", path, "--samples", 80, "--layers", "none", *EXACT)
    said = " ".join(capsys.readouterr().out.split())
    problem = open_checkpoint(path, Measurement(80, "float64")).problem
    (chunk,) = replace(problem, chunk_size=80).chunks()
    assert isinstance(chunk.inputs, tuple)
    (inputs,), y = chunk.inputs, chunk.targets
    assert isinstance(inputs, Tensor)
    model = rebuild(load_checkpoint(path))[0].double()
    parts = [float(Dense(model, inputs[i::4], y[i::4]).eigenvalues()[0]) for i in range(4)]
    sampling = result["sampling"]
    assert [value["value"] for value in sampling["subsets"]] == pytest.approx(parts, rel=1e-3)
    assert sampling["samples_per_subset"] == 20
    assert sampling["standard_error"] == pytest.approx(np.std(parts, ddof=1) / 2, rel=1e-2)
    assert f"moves λ₁ by about ± {sampling['standard_error']:.2g}" in said


@pytest.mark.parametrize(
    ("words", "says", "does_not"),
    [
        (("--top-k", 2), "No others of the same matrix exceed the last shown by more than twice the tol", "float64:"),
        (("--method", "power"), "No others of the same matrix exceed the last shown in magnitude by more", "float64:"),
        (("--backend", "pyhessian"), "not checked in float64: they are PyHessian's", "the model does not run"),
        (("--per-batch", 40), "No others of the same matrix exceed the last shown by more than twice the", "float64:"),
    ],
)
def test_what_is_certified_is_said(
    words: tuple[str, ...],
    says: str,
    does_not: str,
    run: Run,
    checkpoints: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = run("eigs", checkpoints[0], "--samples", 80, *words)
    said = " ".join(capsys.readouterr().out.split())
    assert says in said
    assert does_not not in said
    missed = [
        value["missed"] for entry in [result["global"], *result.get("layers", [])] for value in entry["eigenvalues"]
    ]
    percent = float(said.split("with probability >= ")[1].split(" %")[0])
    assert 95 <= percent <= 100 * (1 - max(*missed, result.get("missed", 0.0)))


def test_clients_and_statement_f(run: Run, checkpoints: tuple[Path, Path], world: World, truth: Dense) -> None:
    result = run("eigs", checkpoints[0], "--clients", "all", "--full", "--top-k", 2, *EXACT)
    assert tops(result["global"]) == pytest.approx(truth.eigenvalues()[:2].tolist(), rel=1e-6)
    right = 0.0
    for entry, part in zip(result["clients"], world.parts, strict=True):
        own = dense(checkpoints[0], world, torch.from_numpy(part))
        assert entry["samples"] == len(part)
        assert entry["loss"] == pytest.approx(own.loss)
        assert tops(entry) == pytest.approx(own.eigenvalues()[:2].tolist(), rel=1e-6)
        right += len(part) / 200 * float(own.eigenvalues()[0])
    f = result["statement_F"]
    assert f["right"] == pytest.approx(right, rel=1e-6)
    assert f["left"] == pytest.approx(float(truth.eigenvalues()[0]), rel=1e-6)
    assert f["slack"] == pytest.approx(f["right"] - f["left"])
    assert f["holds"] is True

    some = run("eigs", checkpoints[0], "--clients", "2,0", "--samples", 50)
    assert [(entry["client"], entry["samples"]) for entry in some["clients"]] == [(2, 25), (0, 25)]


def test_images_are_normalised_a_batch_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_samples, "BATCH_BYTES", 7 * 64 * 8)
    chosen = np.random.default_rng(0).permutation(200)[:40]
    batches = loss_samples.ImageBatches(world.data, chosen, torch.float64, "cpu")
    for _ in range(2):  # it can be read again
        pieces = list(batches)
        assert [len(y) for _, y in pieces] == [7, 7, 7, 7, 7, 5]
        x = normalise(world.data.train.images, world.data.mean, world.data.std, dtype=torch.float64)
        torch.testing.assert_close(torch.cat([piece for piece, _ in pieces]), x[torch.from_numpy(chosen)])
        assert torch.equal(torch.cat([y for _, y in pieces]), world.data.train.labels[torch.from_numpy(chosen)])
