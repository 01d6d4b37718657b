"""Models, losses and data of users that are rarer: complex, of one logit, of two precisions, with scalars or gaps."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flatlab
from flatlab.errors import UsageError
from flatlab.measuring.own_model import OwnModel, open_own
from tests.command_line import flatlab as command

UNUSUAL = """
import torch
from torch import nn

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3

def data():
    return X, Y

def sparse():
    return torch.cat([X, X, X]), torch.where(torch.arange(72) % 15 == 0, torch.cat([Y, Y, Y]), -100)

def hot():
    return X, torch.stack([Y > 0, Y > 1, Y == 0], 1).float()

def numbers():
    return X, X[:, 0]

class Waves(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.waves, self.head = nn.Parameter(torch.randn(3, dtype=torch.cfloat)), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.waves, n=4))

def waves():
    return Waves()

def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))

def half():
    return plain().half()

def binary():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(4, 3), nn.Linear(3, 3).double()

    def forward(self, x):
        return self.head(self.first(x).to(torch.promote_types(torch.float64, x.dtype)))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "unusual.py").write_text(UNUSUAL)
    return tmp_path


def test_complex_parameters_stay_complex(here: Path) -> None:
    done = command(
        *("eigs", "--model", "unusual:waves", "--data", "unusual:data", "--dtype", "float64"),
        *("--layers", "none", "--full", "--json", "e.json"),
        cwd=here,
    )
    assert done.returncode == 0, done.stderr
    from unusual import data, waves  # type: ignore[import-not-found]

    model, (x, y) = waves(), data()
    pairs, head = torch.view_as_real(model.waves.detach()).double(), model.head.double()

    def loss(waves: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        moved = torch.fft.irfft(torch.fft.rfft(x.double()) * torch.view_as_complex(waves), n=4)
        return F.cross_entropy(F.linear(moved, weight, bias), y)

    point = (pairs, head.weight.detach(), head.bias.detach())
    blocks = torch.autograd.functional.hessian(loss, point)
    rows = [torch.cat([b.reshape(p.numel(), -1) for b in row], 1) for p, row in zip(point, blocks, strict=True)]
    result = json.loads((here / "e.json").read_text())
    assert result["loss"] == pytest.approx(loss(*point).item(), rel=1e-9)
    assert result["global"]["eigenvalues"][0]["value"] == pytest.approx(
        torch.linalg.eigvalsh(torch.cat(rows)).max().item()
    )


@pytest.mark.parametrize(
    ("model", "data", "reason"),
    [
        ("binary", "data", "Cross-entropy over one class is 0 whatever the model returns"),
        ("plain", "hot", "The targets of unusual:hot are numbers that do not add up to one"),
        ("plain", "numbers", "The targets of unusual:numbers are numbers that do not add up to one"),
        ("Two", "data", "does not run in float32 .*something in it stays in float64"),
    ],
)
def test_what_the_usual_loss_and_precision_do_not_fit_is_said(model: str, data: str, reason: str, here: Path) -> None:
    done = command("eigs", "--model", f"unusual:{model}", "--data", f"unusual:{data}", cwd=here)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "Traceback" not in said
    with pytest.raises(UsageError, match=reason):
        raise UsageError(said)


def test_a_loss_that_is_named_takes_numbers(here: Path) -> None:
    own = OwnModel("unusual:plain", "unusual:hot", loss="binary_cross_entropy")
    assert open_own(own, None, torch.float32, "cpu").loss == "binary_cross_entropy"


def test_a_raised_precision_is_said_once(here: Path) -> None:
    done = command("eigs", "--model", "unusual:half", "--data", "unusual:data", "--layers", "none", cwd=here)
    assert done.returncode == 0, done.stderr
    assert " ".join((done.stdout + done.stderr).split()).count("are raised to float32") == 1


def test_subsets_without_targets_leave_the_spread_open(here: Path) -> None:
    words = ("--model", "unusual:plain", "--data", "unusual:sparse", "--samples", "36", "--layers", "none")
    done = command("eigs", *words, "--json", "e.json", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "has no target that counts" in " ".join((done.stdout + done.stderr).split())
    assert json.loads((here / "e.json").read_text())["sampling"] is None


class Warm(nn.Module):
    """A network with a temperature."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.temperature = nn.Linear(4, 3), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.net(x) * self.temperature
        return scaled


@pytest.mark.parametrize("layers", ["none", []])
def test_vectors_of_scalars_are_read_again(layers: str | list[str], tmp_path: Path) -> None:
    x, y = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    found = flatlab.eigs(Warm(), "cross_entropy", (x, y), layers=layers, top_k=2)
    assert found.layers == ()
    found.save_vectors(tmp_path / "v.safetensors")
    torch.testing.assert_close(flatlab.load_vectors(tmp_path / "v.safetensors").vectors, found.vectors)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (lambda: torch.arange(9) % 3 + 1, r"no training sample of 1 of its 4 classes \(the first: 0\)"),
        (lambda: torch.arange(9) % 3 * 50, r"no training sample of 98 of its 101 classes \(the first: 1\)"),
    ],
)
def test_classes_without_samples_are_said(
    labels: Callable[[], Tensor], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flatlab.data import load_images
    from flatlab.functions import let_run

    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"gaps{abs(hash(said))}"
    (tmp_path / f"{name}.py").write_text(
        f"import torch\ndef data():\n    s = torch.randn(9, 4), torch.tensor({labels().tolist()})\n    return s, s\n"
        "def single():\n    s = torch.randn(9, 4), torch.full((9,), 5)\n    return s, s\n"
    )
    let_run(f"{name}:data", f"{name}:single")
    with pytest.warns(UserWarning, match=said):
        load_images(f"{name}:data")
    with pytest.raises(UsageError, match="has the one class 5"):
        load_images(f"{name}:single")
