"""What docs/flower.md says of a Flower user's own client and checkpoint is so."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from tests.command_line import ROOT, flatlab

PAGE = (ROOT / "docs" / "flower.md").read_text()
MINE = """
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))

def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)
"""


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The state_dict that the page's client sends back, beside the round-3.npz that it wrote."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)  # our own document
    for name in ("_run_id", "_node_id", "_task_id"):  # as in a process that Flower started
        monkeypatch.setattr(TaskIdentity, name, 1)
    content = RecordDict({"arrays": ArrayRecord(names["net"]().state_dict())})
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    reply = names["app"](Message(content, 1, "train"), context)
    del sys.modules["mine"]
    return dict(reply.content["arrays"].to_torch_state_dict())


def test_a_flower_clients_loop_has_man(trained: dict[str, torch.Tensor]) -> None:
    names: dict[str, Any] = {}
    exec(MINE, names)
    model, (x, y) = names["net"](), names["batch"]()
    for _ in range(5):  # the same, from the paper's equation
        hidden = model[1](model[0](x))
        loss = cross_entropy(model[2](hidden), y) + 0.15 / 2 * hidden.square().mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor)


@pytest.mark.long
def test_what_flower_saves_is_measured(trained: dict[str, torch.Tensor], tmp_path: Path) -> None:
    (command,) = re.findall(r"^flatlab (eigs .*\.npz.*)$", PAGE, flags=re.MULTILINE)
    torch.save(trained, tmp_path / "final.pt")
    found = []
    for words in (command, command.replace("round-3.npz", "final.pt")):
        done = flatlab(*words.split(), "--json", "it.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / "it.json").read_text()))
    names: dict[str, Any] = {}
    exec(MINE, names)
    model, (x, y) = names["net"]().double(), names["batch"]()
    form = {name: tensor.shape for name, tensor in trained.items()}

    def loss(theta: Tensor) -> Tensor:
        pieces = theta.split([shape.numel() for shape in form.values()])
        views = {name: piece.view(shape) for (name, shape), piece in zip(form.items(), pieces, strict=True)}
        return cross_entropy(functional_call(model, views, (x.double(),)), y)

    theta = torch.cat([tensor.double().flatten() for tensor in trained.values()])
    top = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, theta))[-1].item()
    for measured in found:
        (eigenvalue,) = measured["global"]["eigenvalues"]
        assert eigenvalue["value"] == pytest.approx(top, rel=1e-5)
