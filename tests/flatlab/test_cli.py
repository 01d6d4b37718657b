"""The command line, as a user meets it: a subprocess, its output, its files and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flatlab.cli.main import main
from tests.command_line import QUICK, flatlab, program


def fails_with(code: int, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run the same entry point in this process, which saves importing torch for every case; returns what it says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["flatlab", *words])
        patch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as left:
            main()
    said = capsys.readouterr().err
    assert left.value.code == code, (words, said)
    assert "Traceback" not in said
    return said


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from flatlab.cli.main import main; sys.argv = ['flatlab', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code + "print([n for n in ('torch', 'numpy', 'pandas', 'pydantic') if n in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "train" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_a_command_takes_its_own_packages_and_the_library_leaves_the_path_alone(tmp_path: Path) -> None:
    for name in ("figures", "analysis"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the one in the current folder')\n")
    listed = flatlab("figures", "--list", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    code = "import sys; before = list(sys.path); import flatlab; flatlab.train, flatlab.eigs; print(sys.path == before)"
    done = program(sys.executable, "-P", "-c", code, cwd=tmp_path)
    assert done.stdout == "True\n", done.stderr


def test_bad_input_is_one_sentence_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.toml").write_text("rounds = 'ten'\n")
    (tmp_path / "unknown.toml").write_text("raunds = 10\n")
    cases: list[tuple[tuple[str, ...], int, str]] = [
        (("--zeta", "0.1"), 2, "add --man"),
        (("--delta", "0"), 2, "delta = 0.0 does not fit"),
        (("--rounds", "0"), 2, "rounds = 0 does not fit"),
        (("--participation", "1.5"), 2, "participation = 1.5 does not fit"),
        (("--clients", "99999"), 2, "99999 clients cannot share"),
        (("--algorithm", "fedfoo"), 2, "no such algorithm"),
        (("--config", "bad.toml"), 2, "rounds = 'ten' does not fit"),
        (("--config", "unknown.toml"), 2, "Unknown field 'raunds' in unknown.toml"),
        (("--set", "batch_size"), 2, "is not FIELD=VALUE"),
        (("--set", "hyper.rho=1"), 2, "no hyperparameter 'rho'"),
        (("--preset", "mnist"), 2, "There is no preset 'mnist'"),
        (("--model", "nowhere:net"), 2, "nowhere"),
        (("--dataset", "./nothing"), 2, "nothing"),
        (("--state", "cloud"), 2, "--state is one of memory, disk"),
        (("--lr", "1e30", *QUICK), 1, "diverged in round 1 at client"),
        (("--workers", "0"), 2, "--workers"),
    ]
    monkeypatch.chdir(tmp_path)
    for words, code, message in cases:
        assert message in " ".join(fails_with(code, capsys, "train", *words).split()), words
    assert not list(tmp_path.rglob("*.pt"))


def test_bad_checkpoints_and_measurements_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert flatlab("train", *QUICK, "--out", "run", cwd=tmp_path).returncode == 0
    good = "run/final.pt"
    (tmp_path / "text.pt").write_text("no")
    torch.save({"a": torch.zeros(2)}, tmp_path / "foreign.pt")
    cases: list[tuple[tuple[str, ...], str]] = [
        (("none.pt",), "There is no file none.pt"),
        (("text.pt",), "text.pt is"),
        (("foreign.pt",), "not a flatlab checkpoint"),
        ((good, "none.pt"), "There is no file none.pt"),
        ((good, "--layers", "conv9"), "conv9"),
        ((good, "--samples", "999999"), "999999"),
        ((good, "--dtype", "float16"), "--dtype is float32 or float64"),
        ((good, "--method", "qr"), "--method is lanczos or power"),
        ((good, "--backend", "other"), "--backend is flatlab or pyhessian"),
        ((good, "--tol", "0"), "--tol is a share"),
        ((good, "--device", "cuda"), "There is no device 'cuda'"),
    ]
    for words, message in cases:
        assert message in " ".join(fails_with(2, capsys, "eigs", *words).split()), words
    assert not list(tmp_path.rglob("*.eigs.json"))


@pytest.mark.long
def test_eigs_measures_checkpoints_side_by_side(tmp_path: Path) -> None:
    for name, man in (("a", "--no-man"), ("b", "--man")):
        assert flatlab("train", man, *QUICK, "--out", name, cwd=tmp_path).returncode == 0
    done = flatlab("eigs", "a/final.pt", "b/final.pt", "--top-k", "2", "--json", "e.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows if row and row[0] in ("network", "fc1", "fc2", "fc3")] == [
        "network",
        "fc1",
        "fc2",
        "fc3",
    ]
    assert "/[1]" in done.stdout
    result = json.loads((tmp_path / "e.json").read_text())["checkpoints"][0]
    assert result == json.loads((tmp_path / "a" / "final.eigs.json").read_text())
    assert set(result) >= {"checkpoint", "data", "global", "layers", "method", "hvps", "seconds", "versions"}
    choice = result["data"].pop("choice")
    assert result["data"] == {"dataset": "digits", "split": "train", "samples": 1438}
    assert len(choice) == 16  # which samples, as a digest
    assert [len(layer["eigenvalues"]) for layer in result["layers"]] == [2, 2, 2]
    assert set(result["layers"][0]) == {"name", "parameters", "eigenvalues", "input_norm2", "output_norm2"}
    assert set(result["global"]["eigenvalues"][0]) >= {"value", "residual"}

    power = flatlab(
        "eigs", "a/final.pt", "--method", "power", "--dtype", "float64", "--backend", "pyhessian", "--layers", "fc2",
        "--tol", "1e-4", "--json", "p.json", cwd=tmp_path,
    )  # fmt: skip
    assert power.returncode == 0, power.stderr
    check = json.loads((tmp_path / "p.json").read_text())
    assert [layer["name"] for layer in check["layers"]] == ["fc2"]
    top, same = (content["global"]["eigenvalues"][0] for content in (result, check))
    assert top["value"] == pytest.approx(same["value"], abs=top["residual"] + same["residual"] + 1e-5)


def test_a_users_model_trains_and_is_measured_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(input_shape, classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, classes))\n"
    )
    assert flatlab("train", "--model", "mine:net", "--man", *QUICK, "--out", "run", cwd=tmp_path).returncode == 0
    monkeypatch.chdir(tmp_path)
    assert "add --model mine:net" in fails_with(2, capsys, "eigs", "run/final.pt")
    done = flatlab("eigs", "run/final.pt", "--model", "mine:net", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_the_demo_tells_what_happened(tmp_path: Path) -> None:
    done = flatlab("demo", "--out", "demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "With MAN, mean |a|² of the hidden layers fell" in text
    assert "the top eigenvalue of the network" in text
    assert {"layers.png", "layers.pdf", "layers.csv"} <= {path.name for path in (tmp_path / "demo").iterdir()}


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = flatlab("--debug", "train", "--rounds", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_man_says_where_it_acts_and_is_refused_where_it_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for extra, words in {
        (): "MAN finds no activation in the model mlp",
        ("--set", 'man_layers=["fc9"]'): "man_layers names 'fc9', but the model mlp has no such module",
        ("--set", 'man_layers=["fc1"]'): "man_layers names 'fc1', but MAN has nothing to penalise there",
    }.items():
        assert words in fails_with(2, capsys, "train", "--man", "--set", "hidden=[]", *extra).replace("\n", " ")
    assert "man_layers = ['fc1'] is part of MAN, which is off" in fails_with(
        2, capsys, "train", "--set", 'man_layers=["fc1"]'
    ).replace("\n", " ")
    assert not list(tmp_path.iterdir())
    done = flatlab("train", "--man", "--set", 'man_layers=["fc1", "relu2"]', "--out", "r", *QUICK, cwd=tmp_path)
    assert "MAN penalises (units per image): fc1 (64), relu2 (32)." in done.stdout
    done = flatlab("eigs", "r/final.pt", "--samples", "50", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("place", ["file/x.json", "folder"])
@pytest.mark.parametrize(
    "words",
    [
        ("train", "--rounds", "1", "--workers", "1", "--out", "run"),
        ("reproduce", "toy", "--out", "run", "--jobs", "1", "--only", "fedavg-iid-s0"),
        ("verify", "--study", "--rounds", "1", "--seeds", "1", "--out", "run"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_anything_is_trained(
    words: tuple[str, ...], place: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    done = flatlab(*words, "--json", place, cwd=tmp_path)
    assert done.returncode == 1
    assert f"{place} cannot be written" in done.stderr
    assert not (tmp_path / "run").exists()
