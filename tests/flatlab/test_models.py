import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatlab.errors import UsageError
from flatlab.federated.models import build_model, default_model
from flatlab.federated.parameters import layout_of


@pytest.mark.parametrize(
    ("name", "input_shape", "classes", "parameters"),
    [
        ("cifar-cnn", (3, 32, 32), 10, 797_962),
        ("cifar-cnn", (3, 32, 32), 100, 815_332),
        ("tiny-convnet", (3, 64, 64), 200, 2_447_688),
        ("resnet18-gn", (3, 32, 32), 100, 11_227_812),
        ("mlp", (1, 8, 8), 10, 64 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10),
    ],
)
def test_parameter_counts_are_the_published_ones(
    name: str, input_shape: tuple[int, int, int], classes: int, parameters: int
) -> None:
    model = build_model(name, input_shape=input_shape, classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.randn(2, *input_shape)).shape == (2, classes)


@pytest.mark.parametrize("name", ["cifar-cnn", "tiny-convnet", "resnet18-gn", "mlp"])
@pytest.mark.parametrize("input_shape", [(1, 28, 28), (3, 37, 45), (3, 16, 17)])
def test_any_image_size(name: str, input_shape: tuple[int, int, int]) -> None:
    model = build_model(name, input_shape=input_shape, classes=7)
    assert model(torch.randn(2, *input_shape)).shape == (2, 7)


@pytest.mark.parametrize(("name", "side"), [("cifar-cnn", 15), ("tiny-convnet", 7)])
def test_too_small_images(name: str, side: int) -> None:
    with pytest.raises(UsageError, match=rf"{name} needs images of at least \d+ x \d+ pixels, but these are {side} x"):
        build_model(name, input_shape=(3, side, 64), classes=2)
    build_model(name, input_shape=(3, side + 1, side + 1), classes=2)


def test_cifar_cnn_computes_the_papers_layers() -> None:
    model = build_model("cifar-cnn", input_shape=(3, 32, 32), classes=10)
    weights = dict(model.named_parameters())

    def layer(name: str) -> tuple[Tensor, Tensor]:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    x = torch.randn(4, 3, 32, 32)
    a = x
    for name in ("conv1", "conv2"):
        a = F.max_pool2d(F.relu(F.conv2d(a, *layer(name))), 2)
    a = a.permute(0, 2, 3, 1).flatten(1)  # the features channels last
    assert a.shape == (4, 1600)
    for name in ("fc1", "fc2"):
        a = F.relu(F.linear(a, *layer(name)))
    torch.testing.assert_close(model(x), F.linear(a, *layer("fc3")))


def test_tiny_convnet_computes_the_papers_layers() -> None:
    model = build_model("tiny-convnet", input_shape=(3, 64, 64), classes=200)
    weights = dict(model.named_parameters())

    def layer(name: str) -> tuple[Tensor, Tensor]:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    x = torch.randn(2, 3, 64, 64)
    a = x
    for i in (1, 2, 3):
        a = F.conv2d(a, *layer(f"conv{i}"), padding=1)
        a = F.max_pool2d(F.relu(F.group_norm(a, 4, *layer(f"norm{i}"))), 2)
    a = a.permute(0, 2, 3, 1).flatten(1)  # the features channels last
    assert a.shape == (2, 4096)
    for name in ("fc1", "fc2"):
        a = F.relu(F.linear(a, *layer(name)))
    torch.testing.assert_close(model(x), F.linear(a, *layer("fc3")))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_mlp_is_its_equation(activation: str) -> None:
    model = build_model("mlp", input_shape=(2, 3, 4), classes=5, hidden=(7, 6), activation=activation)  # type: ignore[arg-type]
    phi = {"relu": torch.relu, "tanh": torch.tanh}[activation]
    x = torch.randn(9, 2, 3, 4)
    weights = dict(model.named_parameters())
    a = x.reshape(9, 24)
    for layer in ("fc1", "fc2"):
        a = phi(a @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"])
    torch.testing.assert_close(model(x), a @ weights["fc3.weight"].T + weights["fc3.bias"])


def test_mlp_without_hidden_layers_is_linear() -> None:
    model = build_model("mlp", input_shape=(1, 2, 2), classes=3, hidden=())
    assert [name for name, _ in model.named_parameters()] == ["fc1.weight", "fc1.bias"]


def test_every_activation_of_the_resnet_is_a_module_of_its_own() -> None:
    model = build_model("resnet18-gn", input_shape=(3, 32, 32), classes=10)
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == 17
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 20
    assert {norm.num_groups for norm in norms} == {2}


@pytest.mark.parametrize(
    ("dataset", "input_shape", "model"),
    [
        ("digits", (1, 8, 8), "mlp"),
        ("cifar10", (3, 32, 32), "cifar-cnn"),
        ("cifar100", (3, 32, 32), "cifar-cnn"),
        ("tiny-imagenet", (3, 64, 64), "tiny-convnet"),
        ("fashion-mnist", (1, 28, 28), "cifar-cnn"),
        ("someone/icons", (3, 12, 40), "mlp"),
    ],
)
def test_default_models_fit_their_data(dataset: str, input_shape: tuple[int, int, int], model: str) -> None:
    assert default_model(dataset, input_shape) == model
    build_model(model, input_shape=input_shape, classes=3)


MY_MODELS = """
from torch import nn

def good(input_shape, classes):
    c, h, w = input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, classes))

def raises(input_shape, classes):
    raise RuntimeError("out of ideas")

def not_a_module(input_shape, classes):
    return 3

def without_arguments():
    return nn.Identity()

number = 5
"""


@pytest.fixture
def my_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "models.py").write_text(MY_MODELS)
    (package / "broken.py").write_text("import a_package_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])


@pytest.mark.usefixtures("my_models")
def test_a_users_model_from_the_current_folder() -> None:
    model = build_model("my_package.models:good", input_shape=(3, 4, 5), classes=6)
    assert model(torch.randn(2, 3, 4, 5)).shape == (2, 6)


@pytest.mark.usefixtures("my_models")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet", "no model called 'resnet'"),
        ("my_package.models:", "not of the form package.module:function"),
        (":good", "not of the form package.module:function"),
        ("my package:good", "not of the form package.module:function"),
        ("nowhere_at_all:good", "there is no module nowhere_at_all"),
        ("hf:gpt2", "is measured (flatlab eigs --model hf:gpt2) but not trained by name"),
        ("my_package.elsewhere:good", "there is no module my_package.elsewhere"),
        ("my_package.broken:good", "importing my_package.broken raised ModuleNotFoundError"),
        ("my_package.models:best", "my_package.models has no function best"),
        ("my_package.models:number", "my_package.models has no function number"),
        ("my_package.models:raises", "raised RuntimeError: out of ideas"),
        ("my_package.models:without_arguments", "raised TypeError"),
        ("my_package.models:not_a_module", "must return a torch.nn.Module, but returned int"),
    ],
)
def test_a_model_that_cannot_be_built(name: str, sentence: str) -> None:
    with pytest.raises(UsageError) as raised:
        build_model(name, input_shape=(3, 4, 5), classes=6)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("hidden", "activation"), [((4, 0), "relu"), ((4,), "gelu")])
def test_an_mlp_that_cannot_be_built(hidden: tuple[int, ...], activation: str) -> None:
    with pytest.raises(UsageError, match="mlp"):
        build_model("mlp", input_shape=(1, 2, 2), classes=2, hidden=hidden, activation=activation)  # type: ignore[arg-type]


def test_weights_are_matrices_and_kernels_but_of_no_normalisation() -> None:
    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1, 2, 1, 1))

    parts = [nn.Conv2d(1, 2, 3), nn.LayerNorm((2, 4, 4)), Moved(), nn.RMSNorm((4, 4)), nn.GroupNorm(1, 2)]
    model = nn.Sequential(*parts, nn.Flatten())
    model.add_module("bias_net", nn.utils.parametrizations.weight_norm(nn.Linear(32, 3)))
    layout = layout_of(model)
    views = layout.views(layout.is_weight())
    weights = {"0.weight", *(f"bias_net.parametrizations.weight.original{i}" for i in (0, 1))}
    assert {name for name, flags in views.items() if flags.all()} == weights
    assert not any(flags.any() for name, flags in views.items() if name not in weights)
