"""The commands on a user's own model, weights, data and loss: the same numbers as dense Hessians, or one sentence."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from flatlab.cli.main import main
from tests.command_line import flatlab as as_a_process

MINE = """
import torch
from torch import nn
from torch.nn import functional as F

def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))

def data():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(20, 4, generator=generator), torch.randint(2, (20,), generator=generator)

def batches():
    x, y = data()
    return [(x[:3], y[:3]), (x[3:13], y[3:13]), (x[13:], y[13:])]

def split_in_two():
    x, y = data()
    return (x[:15], y[:15]), (x[15:], y[15:])

def linear():
    return nn.Linear(4, 2)

def halved(outputs, targets):
    return F.cross_entropy(outputs, targets) / 2

def other_data():
    x, y = data()
    return x[:, :2], y

def many_classes():
    x, y = data()
    return x, y + 7

def summed(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="sum")

def raising(*_):
    raise RuntimeError("out of ideas")

def broken():
    yield (torch.zeros(2, 4), torch.zeros(2).long())
    raise OSError("the disk is gone")

def nothing():
    return []

def number():
    return 7

def dropping():
    return nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
"""

OWN = ("--model", "mine:model", "--data", "mine:data")
EXACT = ("--dtype", "float64", "--tol", "1e-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's module and weights, in which the commands run."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    torch.save(fresh(3).state_dict(), tmp_path / "w.pt")
    return tmp_path


def fresh(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(20, 4, generator=generator).double(), torch.randint(2, (20,), generator=generator)


def eigenvalues(model: nn.Sequential, x: Tensor, y: Tensor) -> list[float]:
    """Of the dense Hessian of the mean cross-entropy, descending."""
    parameters = dict(model.double().named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def loss(theta: Tensor) -> Tensor:
        pieces = zip(parameters.items(), theta.split(sizes), strict=True)
        return F.cross_entropy(functional_call(model, {n: t.view_as(p) for (n, p), t in pieces}, (x,)), y)

    theta = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    found: list[float] = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, theta)).flip(0).tolist()
    return found


def flatlab(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["flatlab", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def tops(entry: dict[str, Any]) -> list[float]:
    return [value["value"] for value in entry["eigenvalues"]]


def test_eigs_as_a_user_calls_it(folder: Path) -> None:
    words = ("--weights", "w.pt", "--loss", "cross_entropy", "--top-k", 2, *EXACT, "--json", "e.json")
    done = as_a_process("eigs", *OWN, *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Hessian of the mean cross-entropy, 20 samples of mine:data" in done.stdout
    assert "mine:model (w.pt)" in done.stdout
    result = json.loads((folder / "e.json").read_text())
    assert tops(result["global"]) == pytest.approx(eigenvalues(fresh(3), *samples())[:2], rel=1e-6)
    assert [layer["name"] for layer in result["layers"]] == ["0", "2"]
    assert (result["model"], result["weights"], result["loss_function"]) == ("mine:model", "w.pt", "cross_entropy")
    assert "checkpoint" not in result
    assert sorted(path.name for path in folder.glob("*.json")) == ["e.json"]


def test_batches_of_any_size_and_a_loss_of_ones_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--model", "mine:model", "--data", "mine:batches", "--loss", "mine:halved", *EXACT, "--json", "e.json")
    assert flatlab(monkeypatch, "eigs", *words) == 0
    result = json.loads((folder / "e.json").read_text())
    assert 2 * tops(result["global"])[0] == pytest.approx(eigenvalues(fresh(1), *samples())[0], rel=1e-6)


def test_mini_batches_against_dense_hessians(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--model", "mine:model", "--data", "mine:batches", "--per-batch", "6", "--top-k", "2", *EXACT)
    assert flatlab(monkeypatch, "eigs", *words, "--json", "e.json") == 0
    result = json.loads((folder / "e.json").read_text())
    x, y = samples()
    expected = [eigenvalues(fresh(1), x[i : i + 6], y[i : i + 6])[:2] for i in (0, 6, 12)]
    assert len(result["values"]) == 3
    for found, exact in zip(result["values"], expected, strict=True):
        assert found == pytest.approx(exact, rel=1e-6)
    assert tops(result["global"]) == pytest.approx(eigenvalues(fresh(1), x, y)[:2], rel=1e-6)


def test_two_pairs_are_said_to_be_batches(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--model", "mine:model", "--data", "mine:split_in_two", *EXACT, "--json", "e.json")
    assert flatlab(monkeypatch, "eigs", *words) == 0
    result = json.loads((folder / "e.json").read_text())
    assert tops(result["global"])[0] == pytest.approx(eigenvalues(fresh(1), *samples())[0], rel=1e-6)
    said = " ".join(capsys.readouterr().err.split())
    assert "The two pairs of mine:split_in_two are taken for two batches and measured together" in said
    assert flatlab(monkeypatch, "eigs", "--model", "mine:model", "--data", "mine:batches") == 0
    assert "pairs" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "remedy"), [("float32", "raise --tol, or measure in float64"), ("float64", "raise --tol")]
)
def test_more_eigenvalues_than_the_rank(
    dtype: str, remedy: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two classes give the Hessian of a linear layer of 4 inputs rank 5, and all of its 10 dimensions are searched."""
    words = ("--model", "mine:linear", "--data", "mine:data", "--layers", "none", "--top-k", "6", "--dtype", dtype)
    assert flatlab(monkeypatch, "eigs", *words, "--json", "e.json") == 0
    values = json.loads((folder / "e.json").read_text())["global"]["eigenvalues"]
    assert [value["rounded"] for value in values] == [False] * 5 + [True]
    said = " ".join(capsys.readouterr().out.split())
    assert f"~ exact to rounding only, which is above the tolerance here; {remedy}." in said
    assert "or than rounding. " in said  # nothing that could have been missed, hence no probability


@pytest.mark.parametrize("command", ["trace", "density", "surface"])
def test_the_other_commands_take_it_too(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"trace": ("--tol", "0.1"), "density": ("--depth", "23"), "surface": ("--points", "3")}[command]
    assert flatlab(monkeypatch, command, *OWN, "--weights", "w.pt", *words, "--json", "e.json", "--figure", "f") == 0
    result = json.loads((folder / "e.json").read_text())
    exact = eigenvalues(fresh(3), *samples())
    if command == "surface":
        x, y = samples()
        assert result["losses"][1][1] == pytest.approx(F.cross_entropy(fresh(3).double()(x), y).item(), rel=1e-5)
    else:
        estimate = result["trace"]
        assert abs(estimate["value"] - sum(exact)) < 5 * estimate["standard_error"] + 1e-6
    assert (folder / "f.png").exists()


def test_groups_of_layers(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert flatlab(monkeypatch, "eigs", *OWN, *EXACT, "--group-by", "*", "--json", "e.json") == 0
    with_itself = json.loads((folder / "e.json").read_text())
    assert [layer["name"] for layer in with_itself["layers"]] == ["0", "2"]
    (folder / "mine.py").write_text(
        MINE.replace(
            "return nn.Sequential(nn.Linear(4, 3)", "return nn.Sequential(nn.Sequential(nn.Linear(4, 3)"
        ).replace("nn.Linear(3, 2))", "nn.Linear(3, 2)))")
    )
    monkeypatch.delitem(sys.modules, "mine")
    assert flatlab(monkeypatch, "eigs", *OWN, *EXACT, "--group-by", "block", "--json", "e.json", "--figure", "f") == 0
    result = json.loads((folder / "e.json").read_text())
    (group,) = result["layers"]
    assert (group["name"], group["parameters"], result["settings"]["group_by"]) == ("0", 23, "block")
    assert tops(group) == pytest.approx(tops(result["global"]), rel=1e-6)


def test_the_network_is_the_whole_of_it_beside_some_layers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for layers in ("0", "0,2", "none"):
        assert flatlab(monkeypatch, "eigs", *OWN, *EXACT, "--layers", layers, "--json", "e.json") == 0
        found.append(json.loads((folder / "e.json").read_text())["global"])
        (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("network"))
        assert row.split()[1] == "23"
    assert [tops(one) for one in found] == [pytest.approx(tops(found[0]), rel=1e-6)] * 3
    assert [one["parameters"] for one in found] == [23] * 3


def test_some_of_the_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--model", "mine:model", "--data", "mine:batches", "--samples", "16", "--json", "e.json")
    assert flatlab(monkeypatch, "eigs", *words) == 0
    result = json.loads((folder / "e.json").read_text())
    assert result["data"]["samples"] == 16
    assert len(result["sampling"]["subsets"]) == 4


@pytest.mark.parametrize("command", ["eigs", "trace", "density", "surface"])
def test_what_was_read_is_said_by_every_command(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(
        {"state_dict": {"model." + n: t for n, t in fresh(3).state_dict().items()}, "epoch": 1}, folder / "w.ckpt"
    )
    words = {"trace": ("--tol", "0.9"), "density": ("--depth", "5"), "surface": ("--points", "3")}.get(command, ())
    assert flatlab(monkeypatch, command, *OWN, "--weights", "w.ckpt", *words) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "read from the entry 'state_dict' of w.ckpt" in said
    assert "The prefix 'model.' was taken off" in said


class RunsCode:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (Path.touch, (Path("it-ran"),))  # type: ignore[return-value]


def test_weights_never_run_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / "bad.pt").open("wb") as file:
        pickle.dump(RunsCode(), file)
    assert flatlab(monkeypatch, "eigs", *OWN, "--weights", "bad.pt") == 2
    assert "nothing in it was run" in " ".join(capsys.readouterr().err.split())
    assert not (folder / "it-ran").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "Name a checkpoint of flatlab train, or measure a model of your own"),
        (("--model", "mine:model"), "Name a checkpoint of flatlab train, or measure a model of your own"),
        (
            ("--model", "mine:modle", "--data", "mine:data"),
            "The model 'mine:modle' cannot be had: mine has no function",
        ),
        (("--model", "nowhere:model", "--data", "mine:data"), "there is no module nowhere"),
        (("--model", "model", "--data", "mine:data"), "The model 'model' is not of the form package.module:function"),
        (("--model", "mine:number", "--data", "mine:data"), "must return a torch.nn.Module, but returned int"),
        (("--model", "mine:raising", "--data", "mine:data"), "raised RuntimeError: out of ideas"),
        (("--model", "mine:dropping", "--data", "mine:data"), "BatchNorm1d uses batch statistics here"),
        (("--model", "mine:model", "--data", "mine:dta"), "The data 'mine:dta' cannot be had"),
        (("--model", "mine:model", "--data", "mine:number"), "Data must be (inputs, targets) or an iterable"),
        (("--model", "mine:model", "--data", "mine:nothing"), "The data have no samples"),
        (("--model", "mine:model", "--data", "mine:broken"), "Reading the data of mine:broken fails: OSError"),
        (("--model", "mine:model", "--data", "mine:other_data"), "fails on the data of mine:other_data: RuntimeError"),
        (("--model", "mine:model", "--data", "mine:many_classes"), "fails on the data of mine:many_classes"),
        ((*OWN, "--loss", "hinge"), "There is no loss called 'hinge': choose one of cross_entropy, mse"),
        ((*OWN, "--loss", "mine:nothing_such"), "The loss 'mine:nothing_such' cannot be had"),
        ((*OWN, "--loss", "mine:summed"), "is not the mean of their losses"),
        ((*OWN, "--loss", "torch.nn:MSELoss"), "The loss is the class MSELoss: give an instance of it, as MSELoss()"),
        ((*OWN, "--loss", "mine:raising"), "with the loss mine:raising fails"),
        ((*OWN, "--weights", "none.pt"), "There is no file none.pt"),
        ((*OWN, "--weights", "mine.py"), "mine.py is not a saved state_dict"),
        ((*OWN, "--weights", "list.pt"), "list.pt holds something else than a state_dict"),
        ((*OWN, "--weights", "other.pt"), "The weights other.pt do not fit the model mine:model"),
        ((*OWN, "--group-by", "h.*"), "No layer fits the pattern 'h.*'; the layers are 0, 2"),
        ((*OWN, "--group-by", "a,,b"), "--group-by is block, or patterns"),
        ((*OWN, "--group-by", "block", "--layers", "none"), "--group-by does nothing beside --layers none"),
        ((*OWN, "--group-by", "block", "--per-batch", "5"), "--group-by does nothing beside --per-batch"),
        ((*OWN, "--samples", "21"), "mine:data returns 20 samples: ask for 1 to 20, not 21"),
        ((*OWN, "--clients", "all"), "--clients needs a checkpoint"),
        (("w.pt", "--weights", "w.pt"), "--weights is for a model of your own"),
    ],
)
def test_bad_input_is_one_sentence(
    words: tuple[str, ...],
    sentence: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save([1, 2], folder / "list.pt")
    torch.save(nn.Linear(4, 3).state_dict(), folder / "other.pt")
    assert flatlab(monkeypatch, "eigs", *words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert sentence in said
    assert "Traceback" not in said
