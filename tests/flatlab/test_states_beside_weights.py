"""What a module keeps beside its tensors as it is saved: its version, a state of its own; and files that are broken."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig
from flatlab.federated.own_code import MODEL
from flatlab.federated.trial import tried
from flatlab.federated.world import make_world
from flatlab.functions import let_run
from flatlab.measuring.weights import load_weights


class Versioned(nn.Module):
    """As torch's own modules do, it turns what an earlier version saved into what it has now."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def _load_from_state_dict(
        self, state: dict[str, Tensor], prefix: str, metadata: Mapping[str, Any], *rest: Any
    ) -> None:
        if metadata.get("version", 1) < 2:
            state[prefix + "weight"] = state[prefix + "weight"].t()
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Versioned()


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("entry", [None, "state_dict"])
def test_a_file_of_this_version_is_not_taken_for_an_older_one(wrapper: str, entry: str | None, tmp_path: Path) -> None:
    saved, model = Net(), Net()
    holder: nn.Module = saved
    if wrapper:
        holder = nn.Module()
        holder.add_module(wrapper.rstrip("."), saved)
    state = holder.state_dict()
    torch.save(state if entry is None else {entry: state, "epoch": 3}, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt", "net")
    assert torch.equal(model.part.weight, saved.part.weight)
    torch.save(dict(holder.state_dict()), tmp_path / "old.pt")  # without versions
    load_weights(model, tmp_path / "old.pt", "net")
    assert torch.equal(model.part.weight, saved.part.weight.t())


CODE = """
import torch
from torch import nn

class Versioned(nn.Linear):
    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version", 1) < 2:
            state[prefix + "weight"] = -state[prefix + "weight"]
        super()._load_from_state_dict(state, prefix, metadata, *rest)

def make(input_shape, classes):
    return nn.Sequential(nn.Flatten(), Versioned(64, classes))
"""


def test_a_model_with_versions_is_trained_and_comes_back(here: Path) -> None:
    (here / "with_versions.py").write_text(CODE)
    let_run("with_versions:make")
    config = RunConfig.model_validate({"model": "with_versions:make", "clients": 3, "train_samples": 60})
    assert tried(make_world(config)).own_code[MODEL]


class Tempered(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 2)
        self.temperature = 1.0

    def get_extra_state(self) -> dict[str, float]:
        return {"temperature": self.temperature}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.temperature = state["temperature"]


class Heated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Tempered()


def test_the_state_of_a_module_is_taken_from_the_file(tmp_path: Path) -> None:
    saved, model = Heated(), Heated()
    saved.part.temperature = 3.0
    torch.save(saved.state_dict(), tmp_path / "w.pt")
    assert load_weights(model, tmp_path / "w.pt", "net") == []
    assert model.part.temperature == 3.0
    assert torch.equal(model.part.weight, saved.part.weight)
    torch.save({name: x for name, x in saved.state_dict().items() if isinstance(x, Tensor)}, tmp_path / "less.pt")
    other = Heated()
    (said,) = load_weights(other, tmp_path / "less.pt", "net")
    assert said.endswith("lacks part._extra_state: the model's own stays.")
    assert other.part.temperature == 1.0


class Renaming(nn.Module):
    """Turns what version 1 called a kernel into the weight of now."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version", 1) < 2:
            name = next(name for name in state if name.startswith(prefix))
            state[prefix + "weight"] = state.pop(name).t()
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_what_is_renamed_as_it_is_loaded_is_translated_once(tmp_path: Path) -> None:
    kernel, model = torch.randn(3, 3), Renaming()
    torch.save({"kernel": kernel}, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt", "net")
    assert torch.equal(model.weight, kernel.t())


class Adapted(nn.Module):
    """Saves its own part alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return {k: v for k, v in super().state_dict(*args, **options).items() if k.startswith("head")}


def test_a_file_may_hold_more_than_a_model_saves(tmp_path: Path) -> None:
    saved, model = Adapted(), Adapted()
    torch.save(nn.Module.state_dict(saved), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt", "net")
    assert torch.equal(model.body.weight, saved.body.weight)
    assert torch.equal(model.head.weight, saved.head.weight)


def test_a_file_that_does_not_fit_a_model_that_cannot_be_copied_is_one_sentence(tmp_path: Path) -> None:
    model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(3, 2)))
    model(torch.randn(1, 3))
    torch.save({"other": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="do not fit the model net"):
        load_weights(model, tmp_path / "w.pt", "net")


def test_a_damaged_archive_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"x" * 100)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at : at + 4] = b"PK\x00\x00"
    path.write_bytes(bytes(content))
    with pytest.raises(UsageError, match=r"w\.npz is damaged|cannot be read"):
        load_weights(nn.Linear(2, 2), path, "net")
