"""Both ends, other matrices, eigenvectors in a file and densities by layer, as the command line gives them."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call, jacrev
from torch.nn import functional as F

import flatlab
from flatlab.cli.watched_run import train_run
from flatlab.data import normalise
from flatlab.errors import UsageError
from flatlab.federated.config import make_config
from flatlab.federated.execution import Execution
from flatlab.measuring.eigenvectors import load_vectors
from flatlab.runs.checkpoint import load_checkpoint, rebuild
from tests.command_line import flatlab as command_line

RUN = {"rounds": 2, "clients": 4, "local_epochs": 1, "hidden": (5,), "train_samples": 120, "lr": 0.3}
EXACT = ("--full", "--dtype", "float64", "--tol", "1e-7")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(make_config(RUN), tmp_path_factory.mktemp("runs") / "plain", Execution(workers=1))


class Dense:
    """Hessian and other matrices of the checkpoint's loss on all samples, from Jacobians of the outputs."""

    def __init__(self, path: Path) -> None:
        model, data = rebuild(load_checkpoint(path))
        model = model.double()
        x = normalise(data.train.images, data.mean, data.std, dtype=torch.float64)
        y = data.train.labels
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        sizes = [shape.numel() for shape in self.shapes.values()]
        theta = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])

        def outputs(theta: Tensor) -> Tensor:
            pieces = zip(self.shapes.items(), theta.split(sizes), strict=True)
            z: Tensor = functional_call(model, {name: piece.view(shape) for (name, shape), piece in pieces}, (x,))
            return z

        J: Any = jacrev(outputs)(theta)
        z = outputs(theta)
        p = torch.softmax(z, 1)
        slopes = torch.einsum("nc,ncp->np", p - F.one_hot(y, p.shape[1]), J)
        spread = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        G = torch.einsum("ncp,ncd,ndq->pq", J, spread, J) / len(x)
        self.matrices: dict[str, Tensor] = {
            "hessian": torch.autograd.functional.hessian(lambda t: F.cross_entropy(outputs(t), y), theta),
            "gauss-newton": G,
            "fisher": G,
            "empirical-fisher": slopes.T @ slopes / len(x),
        }
        ends = np.cumsum([0, *sizes])
        self.places = {name: slice(*ends[i : i + 2]) for i, name in enumerate(self.shapes)}

    def block(self, matrix: str, layer: str = "") -> Tensor:
        """Of a layer; its parameters lie side by side."""
        own = [place for name, place in self.places.items() if name.startswith(layer)]
        whole = slice(own[0].start, own[-1].stop)
        return self.matrices[matrix][whole, whole]


@pytest.fixture(scope="module")
def truth(checkpoint: Path) -> Dense:
    return Dense(checkpoint)


def command(cwd: Path, *words: object) -> tuple[dict[str, Any], str]:
    """What `--json` holds, and what was printed, of a process of its own."""
    done = command_line(*words, "--json", "out.json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads((cwd / "out.json").read_text()), " ".join((done.stdout + done.stderr).split())


def values(entry: dict[str, Any], end: str) -> list[float]:
    return [value["value"] for value in entry["eigenvalues"] if value["end"] == end]


@pytest.mark.long
def test_both_ends_and_their_vectors(checkpoint: Path, truth: Dense, tmp_path: Path) -> None:
    result, said = command(
        tmp_path, "eigs", checkpoint, *EXACT, "--which", "both", "--top-k", 2, "--vectors", "v.safetensors"
    )
    for name, entry in [("", result["global"]), *((layer["name"], layer) for layer in result["layers"])]:
        block = truth.block("hessian", name)
        exact = torch.linalg.eigvalsh(block)
        assert values(entry, "largest") == pytest.approx(exact.flip(0)[:2].tolist(), rel=1e-6)
        zero = 2e-7 * float(exact[-1])
        assert values(entry, "smallest") == pytest.approx(exact[:2].tolist(), rel=1e-6, abs=zero)
        assert all(value["converged"] for value in entry["eigenvalues"])
    assert "max, min λ ± residual" in said
    assert f"min {values(result['global'], 'smallest')[0]:.4g} ± " in said
    assert "exceed the last max shown, or lie below the last min" in said
    assert json.loads(checkpoint.with_suffix(".eigs-both.json").read_text()) == result
    assert not checkpoint.with_suffix(".eigs.json").exists()  # tables read that as the top

    saved = load_vectors(tmp_path / "v.safetensors")
    assert {name: tuple(x.shape) for name, x in saved.parameters.items()} == {
        name: (4, *shape) for name, shape in truth.shapes.items()
    }
    assert saved.eigenvalues.tolist() == [value["value"] for value in result["global"]["eigenvalues"]]
    assert saved.about["fingerprint"] == result["fingerprint"]
    assert saved.about["settings"]["which"] == "both"
    H = truth.matrices["hessian"]
    V = torch.cat([saved.parameters[name].flatten(1) for name in truth.shapes], 1).T  # the model's names, its shapes
    assert torch.equal(V, saved.vectors)
    torch.testing.assert_close(V.T @ V, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-6)
    for v, value, residual in zip(V.T, saved.eigenvalues, saved.residuals, strict=True):
        assert (H @ v - value * v).norm() <= 1.01 * residual + 1e-10
        assert residual <= 1e-7 * max(abs(float(value)), float(H.norm()))


def test_the_smallest_alone(checkpoint: Path, truth: Dense, tmp_path: Path) -> None:
    result, said = command(tmp_path, "eigs", checkpoint, *EXACT, "--which", "smallest", "--layers", "none")
    assert values(result["global"], "smallest") == pytest.approx(
        [float(torch.linalg.eigvalsh(truth.matrices["hessian"])[0])], rel=1e-6
    )
    assert "smallest λ ± residual" in said
    assert "lie below the last shown" in said


@pytest.mark.parametrize("matrix", ["gauss-newton", "fisher", "empirical-fisher"])
def test_other_matrices(matrix: str, checkpoint: Path, truth: Dense) -> None:
    report = flatlab.eigs(checkpoint, top_k=2, matrix=matrix, full=True, dtype="float64", tol=1e-7)
    found = {"": report.eigenvalues, **{layer.name: layer.eigenvalues for layer in report.layers}}
    for name, own in found.items():
        exact = torch.linalg.eigvalsh(truth.block(matrix, name)).flip(0)[:2]
        assert [value.value for value in own] == pytest.approx(exact.tolist(), rel=1e-6)
    trace = flatlab.trace(checkpoint, matrix=matrix, full=True, dtype="float64", tol=0.1)
    for name, estimate in {"": trace.trace, **trace.layers}.items():
        error = abs(estimate.value - float(truth.block(matrix, name).trace()))
        assert error <= 5 * estimate.standard_error + 1e-12  # so small a matrix may be worked through whole
    density = flatlab.density(checkpoint, matrix=matrix, full=True, dtype="float64", layers=True, probes=2, depth=30)
    for name, one in {"": density.whole, **density.layers}.items():
        assert one.highest == pytest.approx(float(torch.linalg.eigvalsh(truth.block(matrix, name))[-1]), rel=1e-4)
    assert matrix.replace("-", " ") in str(report).splitlines()[0].lower().replace("-", " ")


def test_the_matrix_is_named_wherever_its_numbers_stand(checkpoint: Path, truth: Dense, tmp_path: Path) -> None:
    result, said = command(tmp_path, "eigs", checkpoint, *EXACT, "--matrix", "fisher", "--layers", "none")
    assert values(result["global"], "largest") == pytest.approx(
        [float(torch.linalg.eigvalsh(truth.matrices["fisher"])[-1])], rel=1e-6
    )
    assert said.startswith("Fisher matrix of the mean cross-entropy")
    assert result["settings"]["matrix"] == "fisher"
    assert json.loads(checkpoint.with_suffix(".eigs-fisher.json").read_text()) == result


@pytest.mark.long
def test_densities_by_layer(checkpoint: Path, truth: Dense, tmp_path: Path) -> None:
    result, said = command(
        tmp_path, "density", checkpoint, "--full", "--dtype", "float64", "--layers", "--depth", 60, "--probes", 4,
        "--figure", "drawn",
    )  # fmt: skip
    assert "fc1: highest found" in said
    names = [layer["name"] for layer in result["layers"]]
    assert names == ["fc1", "fc2"]
    for entry in [{"name": "", **result}, *result["layers"]]:
        exact = torch.linalg.eigvalsh(truth.block("hessian", entry["name"]))
        assert entry["highest"] == pytest.approx(float(exact[-1]), rel=1e-6)
        assert entry["size"] == len(exact)
        assert np.trapezoid(entry["density"], entry["grid"]) == pytest.approx(1, rel=1e-3)
        width = 2 * entry["sigma"]
        share = float((exact > width).sum()) / len(exact)
        found = entry["shares"]["positive"]
        assert abs(found["value"] - share) <= 5 * found["standard_error"] + 1e-3
    rows = list(csv.DictReader((tmp_path / "drawn.csv").open()))
    assert {row["layer"] for row in rows} == {"network", *names}
    assert (tmp_path / "drawn.png").stat().st_size > 5000
    assert checkpoint.with_suffix(".density-layers.json").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("eigs", "--which", "smallest", "--method", "power"), "Power iteration finds the largest magnitude alone"),
        (("eigs", "--matrix", "fisher", "--backend", "pyhessian"), "PyHessian multiplies by the Hessian alone"),
        (("eigs", "--clients", "all", "--matrix", "fisher"), "--matrix does nothing beside --clients"),
        (("eigs", "--per-batch", "20", "--which", "both"), "--which does nothing beside --per-batch"),
        (("eigs", "--per-batch", "20", "--vectors", "v"), "--vectors holds those of one network"),
        (("trace", "--flatness", "--matrix", "fisher"), "those of the Hessian"),
        (("eigs", "--matrix", "fischer"), "--matrix is hessian, gauss-newton, fisher or empirical-fisher"),
        (("eigs", "--which", "most"), "--which is largest, smallest or both"),
    ],
)
def test_what_does_nothing_is_refused(
    words: tuple[str, ...],
    says: str,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from flatlab.cli.main import main

    monkeypatch.setattr(sys, "argv", ["flatlab", *words, str(checkpoint)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert says in capsys.readouterr().err


def test_vectors_of_own_models_and_files_that_hold_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 3))
    data = (torch.randn(12, 3), torch.randint(3, (12,)))
    report = flatlab.eigs(model, "cross_entropy", data, top_k=2)
    report.save_vectors(tmp_path / "own.safetensors")
    saved = flatlab.load_vectors(tmp_path / "own.safetensors")
    assert torch.equal(saved.vectors, report.vectors)
    assert (saved.about["model"], saved.about["data"]["samples"]) == ("Sequential", 12)
    assert load_file(tmp_path / "own.safetensors")["0.weight"].shape == (2, 2, 3)
    density = flatlab.density(model, "cross_entropy", data, depth=3, probes=2)
    assert set(density.numbers()).isdisjoint({*density.about, "settings", "seconds"})
    whole = (tmp_path / "own.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"0.weight": torch.ones(2)}, tmp_path / "weights.safetensors")
    for name, says in {
        "nothing": "There is no file",
        "cut": "truncated",
        "weights": "holds no eigenvectors",
    }.items():
        with pytest.raises(UsageError, match=says):
            flatlab.load_vectors(tmp_path / f"{name}.safetensors")


def test_the_worst_case_stands_beside_the_one_step_bound(checkpoint: Path, tmp_path: Path) -> None:
    words = ("trace", checkpoint, "--flatness", "--full", "--dtype", "float64", "--tol", 0.9)
    result, said = command(tmp_path, *words, "--worst-case", "l2", "--batch", 120)
    worst = result["worst_case_sharpness"]
    assert (worst["norm"], worst["radius"], worst["steps"], worst["batch_size"]) == ("l2", 0.5, 20, 120)
    assert worst["bound"] == "lower"
    assert worst["value"] >= result["adaptive_sharpness"]["value"] > 0  # of all samples at once, which climbed one step
    assert f"adaptive worst case* in ℓ₂, ρ = 0.5 ≥ {worst['value']:.4g}" in said
    assert "the mean over 1 batches of 120 samples of how far 20 steps of ascent raise the loss; at least" in said
    assert (result["settings"]["worst_case"], result["settings"]["steps"]) == ("l2", 20)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--worst-case", "linf"), "one of the measures of --flatness"),
        (("--flatness", "--ascent-steps", "5"), "--ascent-steps is of the worst case"),
        (("--flatness", "--normalise-logits"), "--normalise-logits is of the worst case"),
        (("--flatness", "--worst-case", "linf", "--radius", "-1"), "--radius is a share"),
    ],
)
def test_options_of_the_worst_case_are_refused_without_it(
    words: tuple[str, ...],
    says: str,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from flatlab.cli.main import main

    monkeypatch.setattr(sys, "argv", ["flatlab", "trace", *words, str(checkpoint)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert says in capsys.readouterr().err
