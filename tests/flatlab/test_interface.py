"""The Python interface: what the commands compute, in Python's words, by the same functions."""

import dataclasses
import doctest
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import flatlab
from flatlab.cli.main import main
from flatlab.errors import UsageError
from flatlab.federated.config import make_config
from flatlab.federated.execution import Execution, carry_out
from flatlab.federated.rounds import Run
from flatlab.interface.run import TrainedRun
from flatlab.runs.checkpoint import load_checkpoint
from flatlab.runs.metrics import Record
from tests.command_line import program

ROOT = Path(flatlab.__file__).parents[1]
RUN: dict[str, Any] = {"algorithm": "feddyn", "man": True, "zeta": 0.05, "clients": 6, "rounds": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return flatlab.train(**RUN, workers=1, out=tmp_path_factory.mktemp("python") / "runs" / "a", progress=False)


@pytest.fixture
def beside_runs(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is the one in which the examples have their runs/a."""
    monkeypatch.chdir(run.folder.parents[1])


def in_a_new_process(code: str, cwd: Path) -> str:
    done = program(sys.executable, *([code] if code.endswith(".py") else ["-c", code]), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_flatlab_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = "('torch', 'pandas', 'matplotlib', 'numpy', 'rich')"
    code = f"import sys, flatlab; print([m for m in {heavy} if m in sys.modules], sorted(flatlab.__all__))"
    names = [
        "analysis",
        "batch_eigs",
        "client_eigs",
        "density",
        "eigs",
        "figures",
        "flatness",
        "load",
        "load_vectors",
        "local_global",
        "surface",
        "trace",
        "train",
        "verify",
    ]
    assert in_a_new_process(code, tmp_path).strip() == f"[] {names}"
    assert set(names) <= set(dir(flatlab))


@pytest.mark.long
def test_the_packages_beside_it_are_names_of_its_own(tmp_path: Path) -> None:
    code = "import flatlab; print(flatlab.analysis.problem.make_problem, flatlab.figures.report.make_report)"
    assert "make_problem" in in_a_new_process(code, tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        flatlab.nonsense  # noqa: B018


@pytest.mark.usefixtures("beside_runs")
@pytest.mark.parametrize(
    "module",
    [
        "interface.run",
        "interface.loaded",
        pytest.param("interface.measures", marks=pytest.mark.long),
        "interface.flatness",
        pytest.param("interface.local_global", marks=pytest.mark.long),
        "measuring.eigenvectors",
        "measuring.surroundings",
    ],
)
def test_examples(module: str) -> None:
    found = doctest.testmod(import_module(f"flatlab.{module}"))
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize("page", ["docs/python.md", "README.md"])
def test_documents_run_as_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    ours = [block for block in blocks if "flatlab" in block]
    assert ours
    for block in ours:
        exec(block, names)


COMMANDS: dict[str, tuple[tuple[str, ...], Callable[[str], Any]]] = {
    "eigs": (("eigs", "--top-k", "2", "--samples", "100"), lambda at: flatlab.eigs(at, top_k=2, samples=100)),
    "clients": (
        ("eigs", "--clients", "0,1", "--samples", "60"),
        lambda at: flatlab.client_eigs(at, "0,1", samples=60),
    ),
    "batches": (
        ("eigs", "--per-batch", "20", "--samples", "60"),
        lambda at: flatlab.batch_eigs(at, batch_size=20, samples=60),
    ),
    "trace": (("trace", "--tol", "0.2", "--samples", "100"), lambda at: flatlab.trace(at, tol=0.2, samples=100)),
    "flatness": (
        ("trace", "--flatness", "--tol", "0.9", "--samples", "60", "--worst-case", "linf", "--ascent-steps", "2"),
        lambda at: flatlab.flatness(at, tol=0.9, samples=60, worst_case="linf", ascent_steps=2),
    ),
    "layers": (
        ("density", "--layers", "--matrix", "fisher", "--depth", "5", "--probes", "2", "--samples", "60"),
        lambda at: flatlab.density(at, layers=True, matrix="fisher", depth=5, probes=2, samples=60),
    ),
    "ends": (
        ("eigs", "--which", "both", "--matrix", "gauss-newton", "--layers", "none", "--samples", "60"),
        lambda at: flatlab.eigs(at, which="both", matrix="gauss-newton", layers="none", samples=60),
    ),
    "density": (
        ("density", "--depth", "5", "--probes", "2", "--samples", "100"),
        lambda at: flatlab.density(at, depth=5, probes=2, samples=100),
    ),
    "surface": (
        ("surface", "--points", "3", "--samples", "100"),
        lambda at: flatlab.surface(at, points=3, samples=100),
    ),
    "line": (
        ("surface", "--line", "--along", "eigenvectors", "--points", "3", "--samples", "100"),
        lambda at: flatlab.surface(at, line=True, along="eigenvectors", points=3, samples=100),
    ),
    "verify": (("verify", "--samples", "50"), lambda at: flatlab.verify(at, samples=50)),
}


@pytest.mark.usefixtures("beside_runs")
@pytest.mark.parametrize("name", COMMANDS)
def test_python_gives_what_the_command_writes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, measure = COMMANDS[name]
    written = tmp_path / "numbers.json"
    monkeypatch.setattr(sys, "argv", ["flatlab", *words, "runs/a/final.pt", "--json", str(written)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code in (None, 0), capsys.readouterr().err
    result = measure("runs/a/final.pt")
    ours, theirs = result.to_dict(), json.loads(written.read_text())
    assert list(ours) == list(theirs)
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.usefixtures("beside_runs")
@pytest.mark.parametrize("name", COMMANDS)
def test_results_print_plot_and_turn_into_tables(name: str) -> None:
    backend = matplotlib.get_backend()
    result = COMMANDS[name][1]("runs/a")
    assert "digits" in str(result).splitlines()[0]
    assert len(str(result).splitlines()) < 60
    frame = result.to_frame()
    assert len(frame) == len(result.rows())
    assert isinstance(result.plot(), Figure)
    assert (matplotlib.get_backend(), plt.get_fignums()) == (backend, [])
    json.dumps(result.to_dict(), allow_nan=False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.seconds = 0.0


def test_a_checkpoint_is_its_model_its_data_and_its_loss(run: TrainedRun) -> None:
    ckpt = flatlab.load(run.folder)
    assert (ckpt.path, ckpt.round, ckpt.config) == (run.folder / "final.pt", 2, run.config)
    assert ckpt.metrics["test_accuracy"] == run.records[-1]["test_accuracy"]
    problem = ckpt.problem(full=True, dtype="float64")
    images = (ckpt.data.train.images.double() / 255 - ckpt.data.mean[0]) / ckpt.data.std[0]
    expected = F.cross_entropy(ckpt.model.double()(images), ckpt.data.train.labels)
    measured = flatlab.analysis.objective.loss_at(problem, problem.point())
    assert measured == pytest.approx(expected.item(), rel=1e-6)


def test_metrics_are_numbers_by_round(run: TrainedRun) -> None:
    frame = run.metrics
    assert frame.index.tolist() == [1, 2]
    assert frame["train_loss"].tolist() == [record["train_loss"] for record in run.records]
    assert frame["models.server.accuracy"].iloc[-1] == run.records[-1]["models"]["server"]["accuracy"]
    assert "feddyn + MAN (zeta 0.05) on digits" in repr(run)


def test_a_run_that_was_cut_off_goes_on(run: TrainedRun, tmp_path: Path) -> None:
    @contextmanager
    def cut_off(going: Run) -> Iterator[Callable[[Record], None]]:
        def stop(record: Record) -> None:
            raise KeyboardInterrupt

        yield stop

    with pytest.raises(KeyboardInterrupt):
        carry_out(make_config(RUN), tmp_path / "b", Execution(workers=1), watch=cut_off)
    assert not (tmp_path / "b" / "final.pt").exists()
    again = flatlab.train(**RUN, workers=1, out=tmp_path / "b", progress=False)
    one, other = (load_checkpoint(each.checkpoint.path).state_dict for each in (run, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.long
def test_a_script_trains_at_its_top_level_in_several_processes(run: TrainedRun, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import flatlab\nprint('once')\n"
        f"run = flatlab.train(**{RUN!r}, workers=2, out='c', progress=False)\nprint(run.checkpoint.round)\n"
    )
    assert in_a_new_process("script.py", tmp_path).split() == ["once", "2"]
    one, other = (load_checkpoint(path).state_dict for path in (run.folder / "final.pt", tmp_path / "c" / "final.pt"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("batched", [False, True])
def test_a_model_of_ones_own(batched: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    x, y = torch.randn(12, 3).double(), torch.randint(3, (12,))
    data = [(x[:5], y[:5]), (x[5:], y[5:])] if batched else (x, y)
    sizes = [parameter.numel() for parameter in model.parameters()]
    shapes = [parameter.shape for parameter in model.parameters()]
    names = [name for name, _ in model.named_parameters()]

    def loss(theta: Tensor) -> Tensor:
        pieces = [piece.view(shape) for piece, shape in zip(theta.split(sizes), shapes, strict=True)]
        return F.cross_entropy(torch.func.functional_call(model, dict(zip(names, pieces, strict=True)), (x,)), y)

    theta = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    dense = torch.autograd.functional.hessian(loss, theta)
    report = flatlab.eigs(model, nn.CrossEntropyLoss(), data, top_k=2, dtype="float64", tol=1e-8)
    assert [value.value for value in report.eigenvalues] == pytest.approx(
        torch.linalg.eigvalsh(dense).flip(0)[:2].tolist(), rel=1e-7
    )
    assert flatlab.trace(model, "cross_entropy", data, dtype="float64").trace.value == pytest.approx(
        dense.trace().item(), rel=1e-7
    )  # of 17 parameters: worked through whole
    assert flatlab.verify(model, "cross_entropy", data).holds
    assert "12 samples of own data" in str(report)
    assert next(model.parameters()).dtype == torch.float64


def test_the_reference_lists_every_public_function() -> None:
    page = (ROOT / "docs" / "reference" / "flatlab.md").read_text()
    listed = set(re.findall(r"autofunction:: flatlab\.(\w+)", page))
    assert listed == set(flatlab.__all__) - {"analysis", "figures"}


def test_a_run_is_found_from_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    small: dict[str, Any] = {"clients": 4, "rounds": 2, "workers": 1, "train_samples": 80, "hidden": [4]}
    run = flatlab.train(out="runs/a", keep_clients=2, progress=False, **small)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [record["round"] for record in run.records] == [1, 2]
    assert (run.folder / "clients-0002.pt").exists()
    again = flatlab.train(
        out=run.folder, workers=1, progress=False, **run.config.plain()
    )  # its own fields, all of them
    assert again.config == run.config
    (run.folder / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match=r"There is no .*metrics\.jsonl: the run's folder was moved"):
        run.to_dict()
