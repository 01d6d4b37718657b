"""`eigs`, `trace`, `density` and `surface` as a user calls them, against dense Hessians of a small MLP on digits."""

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from flatlab.cli.main import main
from flatlab.cli.trace import print_flatness
from flatlab.cli.watched_run import train_run
from flatlab.data import normalise
from flatlab.errors import NOT_CONVERGED
from flatlab.federated.config import make_config
from flatlab.federated.execution import Execution
from flatlab.federated.world import World, make_world
from flatlab.measuring import loss_samples
from flatlab.measuring.subjects import Measurement, open_checkpoint
from flatlab.runs.checkpoint import load_checkpoint, rebuild

RUN = {"rounds": 2, "clients": 4, "local_epochs": 1, "hidden": (5,), "train_samples": 200, "lr": 0.3}
EXACT = ("--dtype", "float64", "--tol", "1e-7")

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run without MAN and one with it."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {"plain": make_config(RUN), "man": make_config(RUN | {"man": True, "zeta": 0.3})}
    one, two = (train_run(config, folder / name, Execution(workers=1)) for name, config in configs.items())
    return one, two


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process, in an empty folder; returns what --json holds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")

    def go(*words: object, code: int = 0) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["flatlab", *map(str, words), "--json", "out.json"])
        with pytest.raises(SystemExit) as left:
            main()
        assert (left.value.code or 0) == code, words
        result: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
        return result

    return go


@pytest.fixture(scope="module")
def world(checkpoints: tuple[Path, Path]) -> World:
    return make_world(load_checkpoint(checkpoints[0]).config)


class Dense:
    """Loss, Hessian and its blocks of an MLP at given samples, written out."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.parameters = {name: p.detach() for name, p in model.named_parameters()}
        sizes = [p.numel() for p in self.parameters.values()]
        theta = torch.cat([p.reshape(-1) for p in self.parameters.values()])

        def loss(theta: Tensor) -> Tensor:
            pieces = theta.split(sizes)
            named = {name: piece.view_as(p) for (name, p), piece in zip(self.parameters.items(), pieces, strict=True)}
            return F.cross_entropy(functional_call(model, named, (x,)), y)

        self.theta, self.loss_at = theta, loss
        self.loss = float(loss(theta))
        self.hessian = torch.autograd.functional.hessian(loss, theta)
        self.gradient = torch.autograd.functional.jacobian(loss, theta)
        ends = np.cumsum([0, *sizes])
        self.places = {name: slice(*ends[i : i + 2]) for i, name in enumerate(self.parameters)}

    def eigenvalues(self, prefix: str = "") -> Tensor:
        """Of the block of all parameters whose names begin with `prefix`, descending."""
        values: Tensor = torch.linalg.eigvalsh(self.block(prefix)).flip(0)
        return values

    def block(self, prefix: str) -> Tensor:
        places = [torch.arange(len(self.theta))[p] for name, p in self.places.items() if name.startswith(prefix)]
        chosen = torch.cat(places)
        block: Tensor = self.hessian[chosen][:, chosen]
        return block


def dense(path: Path, world: World, where: Any) -> Dense:
    model, data = rebuild(load_checkpoint(path))
    x = normalise(data.train.images[where], data.mean, data.std, dtype=torch.float64)
    return Dense(model.double(), x, data.train.labels[where])


@pytest.fixture(scope="module")
def truth(checkpoints: tuple[Path, Path], world: World) -> Dense:
    return dense(checkpoints[0], world, slice(None))


def tops(entry: dict[str, Any]) -> list[float]:
    return [value["value"] for value in entry["eigenvalues"]]


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


def test_trace_by_hutch_plus_plus(run: Run, checkpoints: tuple[Path, Path], truth: Dense) -> None:
    words = ("trace", checkpoints[0], "--dtype", "float64", "--estimator", "Hutch++", "--max-probes", 300)
    result = run(*words)
    assert_within(result["trace"], truth.hessian.trace())
    assert result["settings"]["estimator"] == "hutch++"
    assert (result["frobenius"], result["layers"], result["hvps"]) == (None, [], 300)


def test_trace(run: Run, checkpoints: tuple[Path, Path], truth: Dense) -> None:
    result = run("trace", checkpoints[0], "--dtype", "float64", "--tol", 0.05, "--max-probes", 2000)
    assert result["converged"]
    assert result["trace"]["standard_error"] <= 0.05 * result["trace"]["value"]
    assert_within(result["trace"], truth.hessian.trace())
    assert_within(result["frobenius"], truth.hessian.norm())
    for layer in result["layers"]:
        assert_within(layer["trace"], truth.block(layer["name"]).trace())
    short = run("trace", checkpoints[0], "--tol", 1e-4, "--max-probes", 12, code=NOT_CONVERGED)
    assert (short["hvps"], short["converged"]) == (12, False)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("--max-probes", 12, "--tol", 0.03), "above 0.03 of the trace; raise --max-probes, or --tol."),
        (("--max-probes", 6, "--estimator", "hutch++"), "above 0.02 of the trace; raise --max-probes."),
        (("--max-probes", 12, "--flatness"), "above 0.02 of the trace; raise --max-probes, or --tol."),
    ],
)
def test_a_trace_that_is_not_exact_enough_is_marked_and_ends_with_its_exit_code(
    words: tuple[object, ...],
    advice: str,
    run: Run,
    checkpoints: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("trace", checkpoints[0], *words, code=NOT_CONVERGED)
    said = capsys.readouterr().out
    marked = [line for line in said.splitlines() if line.rstrip().endswith(" !")]
    assert [line.split()[0] for line in marked] == ["trace" if "--flatness" in words else "network"]
    assert f"! not converged: the standard error is {advice}" in said
    assert run("eigs", checkpoints[0], "--layers", "none")


def test_an_eigenvalue_exact_to_rounding_is_marked_as_by_eigs(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"value": 2.0, "residual": 0.01, "converged": False, "rounded": True}
    print_flatness([flatness_of(value)])
    said = capsys.readouterr().out
    assert "2 ± 1e-02 ~" in said
    assert "~ exact to rounding only, which is above the tolerance here; measure in float64." in said
    assert "!" not in said


def flatness_of(value: dict[str, Any]) -> dict[str, Any]:
    """A saved result of a network without layers whose top eigenvalue is `value`."""
    estimate = {"value": 3.0, "standard_error": 0.01, "converged": True}
    sharpness = {"value": 0.1, "radius": 0.5}
    return {
        "model": "mine:net",
        "weights": "",
        "seconds": 1.0,
        "data": {"dataset": "mine:data", "split": "", "samples": 5},
        "loss_function": "mse",
        "settings": {"estimator": "hutchinson", "tol": 0.02},
        "eigenvalues": [value],
        "spread": None,
        **dict.fromkeys(("trace", "frobenius"), estimate),
        **dict.fromkeys(("sam_sharpness", "adaptive_sharpness"), sharpness),
        "layers": [],
    }


def assert_within(estimate: dict[str, float], exact: Tensor) -> None:
    """Five standard errors: one in a million if the estimate is right."""
    assert abs(estimate["value"] - float(exact)) <= 5 * estimate["standard_error"]
    assert estimate["standard_error"] < 0.5 * abs(float(exact))


def test_flatness_measures(run: Run, checkpoints: tuple[Path, Path], truth: Dense) -> None:
    words = ("trace", checkpoints[0], "--flatness", "--dtype", "float64", "--max-probes", 60)
    result = run(*words, code=NOT_CONVERGED)  # four percent
    exact = truth.eigenvalues()
    assert tops(result) == pytest.approx(exact[:5].tolist(), rel=1e-3)
    assert result["spread"] == pytest.approx(float(exact[0] / exact[4]), rel=1e-2)
    assert_within(result["trace"], truth.hessian.trace())
    assert_within(result["frobenius"], truth.hessian.norm())
    g, theta = truth.gradient, truth.theta
    step = 0.05 * g / g.norm()
    assert result["sam_sharpness"]["value"] == pytest.approx(float(truth.loss_at(theta + step)) - truth.loss)
    step = 0.5 * theta**2 * g / (theta * g).norm()
    assert result["adaptive_sharpness"]["value"] == pytest.approx(float(truth.loss_at(theta + step)) - truth.loss)
    for layer in result["layers"]:
        weight = f"{layer['name']}.weight"
        norm2 = float(truth.parameters[weight].square().sum())
        assert layer["by_eigenvalue"] == pytest.approx(norm2 * float(truth.eigenvalues(weight)[0]), rel=1e-3)
        assert_within(layer["trace"], truth.block(weight).trace())
        assert layer["by_trace"] == pytest.approx(norm2 * layer["trace"]["value"])


def test_density(run: Run, checkpoints: tuple[Path, Path], truth: Dense) -> None:
    result = run("density", checkpoints[0], "--dtype", "float64", "--depth", 60, "--probes", 8)
    exact = truth.eigenvalues()
    assert result["highest"] == pytest.approx(float(exact[0]), rel=1e-6)
    assert result["lowest"] == pytest.approx(float(exact[-1]), rel=1e-6)
    assert_within(result["trace"], truth.hessian.trace())
    width = 2 * result["sigma"]
    for name, count in {
        "negative": (exact < -width).sum(),
        "zero": (exact.abs() <= width).sum(),
        "positive": (exact > width).sum(),
    }.items():
        share = result["shares"][name]
        assert abs(share["value"] - float(count) / len(exact)) <= 5 * share["standard_error"] + 1e-3
    assert sum(share["value"] for share in result["shares"].values()) == pytest.approx(1)
    assert np.trapezoid(result["density"], result["grid"]) == pytest.approx(1, rel=1e-3)


def test_surface(run: Run, checkpoints: tuple[Path, Path], truth: Dense) -> None:
    line = run(
        "surface", checkpoints[0], "--line", "--along", "eigenvectors", "--dtype", "float64", "--extent", 1e-3,
        "--points", 3,
    )  # fmt: skip
    assert line["a"] == [-1e-3, 0, 1e-3]
    (before,), (at,), (after,) = line["losses"]
    assert at == pytest.approx(truth.loss)
    assert (before + after - 2 * at) / 1e-6 == pytest.approx(float(truth.eigenvalues()[0]), rel=1e-3)
    assert line["eigenvalues"][0]["value"] == pytest.approx(float(truth.eigenvalues()[0]), rel=1e-3)

    plane = run("surface", checkpoints[0], "--points", 5, "--extent", 0.5, "--dtype", "float64", "--seed", 3)
    assert plane["losses"][2][2] == pytest.approx(truth.loss)
    assert np.shape(plane["losses"]) == (5, 5)
    assert plane["b"] == [-0.5, -0.25, 0, 0.25, 0.5]
    other = run("surface", checkpoints[0], "--points", 5, "--extent", 0.5, "--dtype", "float64", "--seed", 4)
    assert other["losses"][0][0] != plane["losses"][0][0]


def test_a_surface_says_where_the_loss_is_not_finite(
    run: Run, checkpoints: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plane = run("surface", checkpoints[0], "--points", 3, "--extent", 1e30, "--figure", "plane")
    assert sum(loss is None for line in plane["losses"] for loss in line) == 8
    said = " ".join(capsys.readouterr().out.split())
    assert f"lowest {plane['loss']:.4g} highest {plane['loss']:.4g} mean at the rim not finite" in said
    assert "points not finite 8" in said
    assert Path("plane.csv").exists()
    run("surface", checkpoints[0], "--line", "--points", 3, "--extent", 1e30, "--figure", "line")
    run("surface", checkpoints[0], "--points", 2, "--extent", 1e30, "--figure", "nothing")
    assert "There is no figure: no loss around the model is a finite number." in capsys.readouterr().out


FIGURES: dict[tuple[str, ...], tuple[int, str]] = {
    ("eigs",): (2 * 3, "eigenvalue"),
    ("eigs", "--clients", "all"): (2 * 4, "eigenvalue"),
    ("eigs", "--per-batch", "50", "--top-k", "2"): (2 * 4 * 2, "eigenvalue"),
    ("trace", "--tol", "0.5"): (2 * 3, "value"),
    ("trace", "--flatness", "--tol", "0.5"): (2 * 2, "by_trace"),
    ("density", "--depth", "20", "--probes", "2"): (2 * 400, "density"),
    ("density", "--layers", "--depth", "20", "--probes", "2"): (2 * 3 * 400, "density"),
    ("eigs", "--which", "both", "--matrix", "fisher"): (2 * 3, "eigenvalue"),
    ("surface", "--points", "5"): (2 * 25, "loss"),
    ("surface", "--line", "--along", "eigenvectors", "--points", "5"): (2 * 5, "loss"),
}


@pytest.mark.long
@pytest.mark.parametrize("words", FIGURES, ids=" ".join)
def test_several_subjects_are_shown_side_by_side_and_drawn(
    words: tuple[str, ...],
    run: Run,
    checkpoints: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = run(*words, *checkpoints, "--figure", "drawn/it.png")
    said = capsys.readouterr().out
    assert "[1]" in said
    assert "/[1]" in said
    assert f"[2] {checkpoints[1]}: " in said
    assert [one["checkpoint"] for one in result["checkpoints"]] == list(map(str, checkpoints))
    assert (tmp_path / "drawn" / "it.png").stat().st_size > 5000
    assert (tmp_path / "drawn" / "it.pdf").read_bytes().startswith(b"%PDF")
    count, column = FIGURES[words]
    rows = list(csv.DictReader((tmp_path / "drawn" / "it.csv").open()))
    assert len(rows) == count
    assert all(np.isfinite(float(row[column])) for row in rows)


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
