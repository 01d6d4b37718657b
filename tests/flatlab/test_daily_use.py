"""What a day's use asks of the commands beside right numbers: words, order, shortcuts, exit codes."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text
from typer.main import get_command

from analysis.theory.statements import Interval
from flatlab.cli.main import app
from flatlab.cli.theory_tables import sides
from flatlab.errors import NOT_CONVERGED
from flatlab.grid.shipped import shipped_grids
from tests.command_line import environment, flatlab


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs, a-man with MAN and b without."""
    folder = tmp_path_factory.mktemp("daily")
    small = ("--rounds", 1, "--clients", 4, "--set", "train_samples=200", "--set", "test_samples=60", "--workers", 1)
    for words in (("--man", "--out", "a-man", "--algorithm", "FedSAM", "--set", "rho=0.07"), ("--out", "b")):
        done = flatlab("train", *small, *words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_a_hyperparameter_is_understood_by_its_name_and_names_in_any_letters(runs: Path) -> None:
    config = (runs / "a-man" / "config.toml").read_text()
    assert 'algorithm = "fedsam"' in config
    assert "rho = 0.07" in config


def test_the_run_without_man_is_the_reference_in_whatever_order(runs: Path) -> None:
    done = flatlab("eigs", "a-man", "b/final.pt", "--layers", "none", "--json", "-", cwd=runs)
    assert done.returncode == 0, done.stderr
    assert "[1] b/final.pt" in done.stderr  # tables stand beside what --json - writes
    assert [one["checkpoint"] for one in json.loads(done.stdout)["checkpoints"]] == ["a-man/final.pt", "b/final.pt"]


@pytest.mark.long
def test_a_ratio_of_unlike_measurements_comes_with_a_word(runs: Path) -> None:
    flatlab("eigs", "b", "--samples", 50, "--layers", "none", "--json", "50.json", cwd=runs)
    other = flatlab(
        "train", "--out", "c", "--rounds", 1, "--clients", 4, "--workers", 1, "--set", "train_samples=80", cwd=runs
    )
    assert other.returncode == 0, other.stderr
    said = flatlab("eigs", "b", "c", "--layers", "none", cwd=runs).stdout
    assert "[2] was measured otherwise than [1] (samples 80, not 200; train_samples 80, not 200): ratios" in said
    alike = flatlab("eigs", "b", "c", "--samples", 50, "--layers", "none", cwd=runs).stdout
    assert "[2] was measured otherwise than [1] (train_samples 80, not 200): ratios compare that too." in alike


def test_a_search_that_did_not_converge_has_an_exit_code_of_its_own(runs: Path) -> None:
    done = flatlab("eigs", "b", "--max-iter", 3, "--json", "short.json", cwd=runs)
    assert done.returncode == NOT_CONVERGED
    assert "not converged" in done.stdout
    assert json.loads((runs / "short.json").read_text())["global"]["eigenvalues"][0]["converged"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "--partition", "IID", "--delta", 0.5), "delta = 0.5 has no effect"),
        (("train", "--engine", "batched", "--workers", 2), "--workers is of worker processes"),
        (("train", "--engine", "streams", "--workers", 2), "--workers is of worker processes"),
        (("train", "--device", "cuda", "--workers", 2), "--workers is of processes, which train on the CPU"),
        (("surface", "b", "--along", "eigenvectors", "--seed", 1), "--seed is of random directions"),
        (("verify", "b", "--zetas", "0.1"), "--zetas is of the runs that --study trains"),
        (("verify", "--samples", 10), "--samples is of checkpoints"),
        (("verify", "--dataset", "mine:data"), "--dataset is of checkpoints"),
        (("verify", "--study", "b", "--rounds", 3), "--rounds is of the runs that --study trains"),
        (("presets", "--man"), "name the preset too"),
        (("reproduce", "toy", "--only", "nothing*"), "--only nothing* is no cell of the grid"),
        (("reproduce", "toy", "--set", "lr=-1"), "lr = -1 does not fit"),
        (("eigs", "b", "--method", "bisection"), "--method is lanczos or power, not 'bisection'"),
    ],
)
def test_an_option_that_would_do_nothing_or_wrong_is_refused(words: tuple[object, ...], said: str, runs: Path) -> None:
    before = sorted(runs.rglob("*"))
    done = flatlab(*words, cwd=runs)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(runs.rglob("*")) == before


def test_a_dry_run_says_what_would_be_and_leaves_nothing(tmp_path: Path) -> None:
    done = flatlab("train", "--dry-run", "--algorithm", "scaffold", "--out", "x", "--rounds", 7, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for said in ("rounds = 7", "parameters, 1,438 training samples", "It would go to x.", "takes about", "clients x"):
        assert said in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_grid_runs_the_cells_asked_for_with_other_fields(tmp_path: Path) -> None:
    small = [f"--set={field}" for field in ("rounds=1", "clients=4", "train_samples=1200", "test_samples=40")]
    words = ("reproduce", "toy", "--only", "fedavg-iid-s0", *small, "--out", "o", "--dry-run", "--json", "plan.json")
    done = flatlab(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(json.loads((tmp_path / "plan.json").read_text())["cells"]) == ["fedavg-iid-s0"]


def test_what_the_help_promises(tmp_path: Path) -> None:
    train, grid = (flatlab(name, "--help", cwd=tmp_path).stdout for name in ("train", "reproduce"))
    assert "iid|dirichlet" in train
    for algorithm in ("fedavg", "feddyn", "scaffold"):
        assert algorithm in train
    assert "function(input_shape=(channels, height, width)" in " ".join(train.replace("│", "").split())
    for name in shipped_grids():
        assert name in grid


@given(st.lists(st.floats(-50, 50), min_size=4, max_size=4).map(sorted))
def test_a_relation_reads_as_it_is(ends: list[float]) -> None:
    """The smaller side is never rounded to more than the larger."""
    left, right = sides(Interval(*ends[:2]), Interval(*ends[2:]))
    assert float(left.split(" to ")[-1]) <= float(right.split(" to ")[0])


def test_the_version_is_the_package_s(tmp_path: Path) -> None:
    assert flatlab("--version", cwd=tmp_path).stdout.strip() == version("flatlab")


def test_a_shell_completes_commands_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_FLATLAB_COMPLETE", "complete_bash")
    for typed, position, words in (("flatlab e", 1, ["eigs"]), ("flatlab eigs --top", 2, ["--top-k"])):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(position))
        assert flatlab(cwd=tmp_path).stdout.split() == words


def test_help_loses_no_bracket_to_markup() -> None:
    """Rich takes [word] for a style and prints nothing of it."""
    commands = get_command(app).commands.values()  # type: ignore[attr-defined]
    helps = [text for command in commands for text in (command.help, *(getattr(p, "help", "") for p in command.params))]
    assert any("[dask]" in (text or "") for text in helps)
    for text in filter(None, helps):
        assert Text.from_markup(text).plain == text.replace("\\[", "[")


@pytest.mark.long
def test_a_user_s_own_analysis_py_is_not_taken_for_ours(tmp_path: Path, runs: Path) -> None:
    (tmp_path / "analysis.py").write_text("raise SystemExit('the wrong analysis')\n")
    (tmp_path / "figures.py").write_text("raise SystemExit('the wrong figures')\n")
    for start in ((sys.executable, "-m", "flatlab"), (sys.executable, "-m", "torch.distributed.run", "-m", "flatlab")):
        words = [*start, "eigs", str(runs / "b"), "--layers", "none", "--json", "x.json"]
        done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "wrong" not in done.stderr
