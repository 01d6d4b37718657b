"""Weights as others save them: loaded exactly and said, or refused in one sentence; never run as code."""

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flatlab.errors import UsageError
from flatlab.measuring.weights import load_weights

State = dict[str, Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.waves, self.scale = nn.Parameter(torch.randn(3, dtype=torch.complex64)), nn.Parameter(torch.randn(3))
        self.register_buffer("phases", torch.randn(2, dtype=torch.complex64))


class Counted(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(5))
        self.register_buffer("calls", torch.tensor(7))


def state(seed: int = 1, kind: Callable[[], nn.Module] = Net) -> State:
    torch.manual_seed(seed)
    return {name: torch.randn(t.shape) if t.is_floating_point() else t for name, t in kind().state_dict().items()}


def prefixed(prefix: str, of: State | None = None) -> State:
    return {prefix + name: tensor for name, tensor in (of or state()).items()}


OTHER = state(2)
CRITERION = {"criterion.weight": torch.ones(2)}
FILES: dict[str, tuple[Any, str]] = {
    "plain": (state(), ""),
    "DataParallel": (prefixed("module."), "prefix 'module.'"),
    "compiled": (prefixed("_orig_mod."), "prefix '_orig_mod.'"),
    "both": (prefixed("_orig_mod.module."), "prefix '_orig_mod.module.'"),
    "the other way": (prefixed("module._orig_mod."), "prefix '_orig_mod.module.'"),
    "compiled part": ({k.replace("first.", "first._orig_mod."): v for k, v in state().items()}, "'_orig_mod.'"),
    "nested": (prefixed("model.module."), "prefix 'model.module.'"),
    "Lightning": ({"state_dict": prefixed("model."), "epoch": 3, "optimizer_states": [{}]}, "entry 'state_dict'"),
    "plain trainer": ({"model_state_dict": state(), "optimizer_state_dict": {"state": {}}}, "entry 'model_state_dict'"),
    "model and EMA": ({"ema": OTHER, "model": state(), "step": torch.tensor(1)}, "entry 'model'"),
    "EMA beside": ({**state(), **prefixed("ema.", OTHER)}, "left unread"),
    "two copies": ({"state_dict": {**prefixed("model."), **prefixed("ema_model.", OTHER)}}, "prefix 'model.'"),
    "deep": ({"checkpoint": {"model": state()}}, "entry 'checkpoint.model'"),
    "a loss beside": ({**prefixed("model."), **CRITERION}, "criterion.weight, left unread"),
    "a loss among them": ({**state(), **CRITERION}, "criterion.weight, left unread"),
    "half": ({k: v.bfloat16().float() if v.is_floating_point() else v for k, v in state().items()}, ""),
    "no counters": ({k: v for k, v in state().items() if "batches" not in k}, ""),
}


def assert_loaded(path: Path, expected: State, sentence: str, kind: Callable[[], nn.Module] = Net) -> None:
    model = kind()
    said = " ".join(load_weights(model, path, "mine:make"))
    assert sentence in said
    assert bool(said) == bool(sentence)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("name", FILES)
def test_state_dicts_wherever_they_are(name: str, tmp_path: Path) -> None:
    content, sentence = FILES[name]
    torch.save(content, tmp_path / "w.pt")
    expected = content if name == "half" else state()
    assert_loaded(tmp_path / "w.pt", expected, sentence)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_and_said(half: torch.dtype, tmp_path: Path) -> None:
    low = {k: v.to(half) if v.is_floating_point() else v for k, v in state().items()}
    torch.save(low, tmp_path / "w.pt")
    raised = {k: v.float() if v.is_floating_point() else v for k, v in low.items()}
    assert_loaded(tmp_path / "w.pt", raised, f"{str(half).removeprefix('torch.')} weights")


def test_what_float32_rounds_is_said(tmp_path: Path) -> None:
    fine = {name: t.double() * 1.1 if t.is_floating_point() else t for name, t in state().items()}
    torch.save(fine, tmp_path / "fine.pt")
    torch.save({name: t.double() if t.is_floating_point() else t for name, t in state().items()}, tmp_path / "wide.pt")
    assert "float64 weights" in " ".join(load_weights(Net(), tmp_path / "fine.pt", "net"))
    assert load_weights(Net(), tmp_path / "wide.pt", "net") == []  # float32 holds them all
    assert load_weights(Net().double(), tmp_path / "fine.pt", "net") == []


def test_safetensors_and_what_they_leave_out_of_tied_weights(tmp_path: Path) -> None:
    save_file(prefixed("model."), tmp_path / "w.safetensors")
    assert_loaded(tmp_path / "w.safetensors", state(), "prefix 'model.'")
    tied = state(kind=Tied)
    tied["head.weight"] = tied["table.weight"]
    for kept in ("table.weight", "head.weight"):
        save_file({kept: tied[kept]}, tmp_path / "any.name")
        assert_loaded(tmp_path / "any.name", tied, "", Tied)


def test_weights_that_the_model_ties_and_the_file_does_not(tmp_path: Path) -> None:
    torch.save({"table.weight": torch.zeros(5, 3), "head.weight": torch.ones(5, 3)}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"ties head.weight to another tensor"):
        load_weights(Tied(), tmp_path / "w.pt", "mine:make")


def test_arrays_in_order_and_by_name(tmp_path: Path) -> None:
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(6)])  # twelve: arr_10 comes after arr_9
    arrays = [torch.randn(t.shape) for t in model.state_dict().values()]
    expected = dict(zip(model.state_dict(), arrays, strict=True))
    numbers = [array.numpy() for array in arrays]
    np.savez(tmp_path / "order.npz", *numbers)
    load_weights(model, tmp_path / "order.npz", "mine:make")
    assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())
    named: dict[str, Any] = {"module." + name: array.numpy() for name, array in state().items()}
    np.savez(tmp_path / "named.npz", **named)
    assert_loaded(tmp_path / "named.npz", state(), "prefix 'module.'")


def test_complex_models(tmp_path: Path) -> None:
    trained = Waves()
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    np.savez(tmp_path / "w.npz", *[tensor.numpy() for tensor in trained.state_dict().values()])
    for name in ("w.pt", "w.npz"):
        assert_loaded(tmp_path / name, trained.state_dict(), "", Waves)
    for part, value in {"waves": 1j * torch.tensor(torch.inf), "phases": torch.tensor(torch.nan)}.items():
        broken = trained.state_dict() | {part: trained.state_dict()[part] + value}
        torch.save(broken, tmp_path / "w.pt")
        with pytest.raises(UsageError, match=f"{part} in .* has entries that are not finite"):
            load_weights(Waves(), tmp_path / "w.pt", "mine:make")
    torch.save(trained.state_dict() | {"scale": trained.waves.detach()}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"scale in .* is a sparse, complex, quantised"):
        load_weights(Waves(), tmp_path / "w.pt", "mine:make")


@pytest.mark.parametrize("kind", [Tied, Counted])
@pytest.mark.parametrize("listed", ["parameters", "state_dict"])
def test_tied_parameters_in_order(listed: str, kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    trained = kind()
    tensors = trained.parameters() if listed == "parameters" else trained.state_dict().values()
    np.savez(tmp_path / "w.npz", *[tensor.detach().numpy() for tensor in tensors])
    assert_loaded(tmp_path / "w.npz", trained.state_dict(), "", kind)


def test_arrays_of_another_byte_order(tmp_path: Path) -> None:
    arrays = [tensor.numpy() for tensor in state().values()]
    np.savez(tmp_path / "w.npz", *[array.astype(array.dtype.newbyteorder(">")) for array in arrays])
    assert_loaded(tmp_path / "w.npz", state(), "")


@pytest.mark.parametrize("codes", [torch.int8, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("name", ["head.weight", "norm.running_mean"])
def test_whole_numbers_are_no_weights(name: str, codes: torch.dtype, tmp_path: Path) -> None:
    torch.save({**state(), name: torch.ones_like(state()[name]).to(codes)}, tmp_path / "w.pt")
    kind = str(codes).removeprefix("torch.")
    with pytest.raises(UsageError, match=f"{name} in .* is {kind}, but in the model float32, .* save the parameters"):
        load_weights(Net(), tmp_path / "w.pt", "mine:make")


def test_what_a_model_of_higher_precision_can_hold_is_finite(tmp_path: Path) -> None:
    large = {k: t.double() * 1e60 if t.is_floating_point() else t for k, t in state().items()}
    torch.save(large, tmp_path / "w.pt")
    assert_loaded(tmp_path / "w.pt", large, "", lambda: Net().double())
    with pytest.raises(UsageError, match="beyond float32: measure in float64"):
        load_weights(Net(), tmp_path / "w.pt", "mine:make")


def objects(path: Path) -> None:
    np.savez(path, np.array([{"a": 1}], dtype=object))


BAD: dict[str, tuple[Any, str]] = {
    "another shape": (prefixed("module.") | {"module.head.weight": torch.zeros(5, 3)}, "size mismatch for head.weight"),
    "one missing": (
        {k: v for k, v in state().items() if k != "head.bias"},
        'Missing key(s) in state_dict: "head.bias"',
    ),
    "a layer more": ({**state(), "extra.weight": torch.zeros(2)}, 'names that it does not have: "extra.weight"'),
    "a layer more inside": (prefixed("m.") | {"m.extra.weight": torch.zeros(2)}, "extra.weight"),
    "two that fit": (prefixed("teacher.") | prefixed("student.", OTHER), "several sets of weights that fit"),
    "two entries that fit": ({"a": state(), "b": OTHER}, "'a' and 'b'"),
    "nan": (
        {**state(), "head.bias": torch.tensor([0, torch.nan])},
        "head.bias in w.pt has entries that are not finite",
    ),
    "beyond float32": (
        {**state(), "head.bias": torch.tensor([0, 1e300], dtype=torch.float64)},
        "head.bias in w.pt has entries that are beyond float32: measure in float64",
    ),
    "complex": ({**state(), "head.bias": torch.zeros(2, dtype=torch.complex64)}, "sparse, complex, quantised"),
    "sparse": ({**state(), "head.weight": torch.zeros(2, 3).to_sparse()}, "sparse, complex, quantised"),
    "other names": ({"a": torch.zeros(2)}, "Missing key(s)"),
    "no tensors": ({"state_dict": {"a": 1}}, "something else than a state_dict"),
    "an optimizer's averages": ({"optimizer": {"exp_avg": state()}, "step": 3}, "something else than a state_dict"),
    "hyperparameters": ({"state_dict": state(), "hyper_parameters": argparse.Namespace(lr=1)}, "argparse.Namespace"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, sentence = BAD[name]
    torch.save(content, "w.pt")
    with pytest.raises(UsageError) as caught:
        load_weights(Net(), Path("w.pt"), "mine:make")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (objects, "cannot be read as numbers"),
        (lambda path: np.savez(path, np.zeros(3)), "it has 9 tensors, the file 1 arrays"),
        (lambda path: np.savez(path, *[np.zeros(3) for _ in state()]), "array 0 has shape (3,), first.weight (3, 4)"),
        (lambda path: path.write_bytes(b'\x10\x00\x00\x00\x00\x00\x00\x00{"a": 1'), "no safetensors file"),
        (lambda path: path.write_bytes(pickle.dumps(argparse.Namespace(a=1))), "nothing in it was run"),
        (lambda path: None, "There is no file"),
    ],
)  # fmt: skip
def test_files_that_are_no_weights(write: Callable[[Path], Any], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    write(path)
    with pytest.raises(UsageError) as caught:
        load_weights(Net(), path, "mine:make")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_that_modules_translate_themselves_are_loaded(prefix: str, tmp_path: Path) -> None:
    former = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)), nn.Tanh())
    torch.save({prefix + name: tensor for name, tensor in former.state_dict().items()}, tmp_path / "w.pt")
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh())
    load_weights(model, tmp_path / "w.pt", "model")
    x = torch.randn(5, 4)
    torch.testing.assert_close(model(x), former(x))
