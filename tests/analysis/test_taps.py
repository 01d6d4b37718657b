"""Which functions make activations: all of torch.nn's nonlinearities, each once, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.taps import named_activations, tap_activations, tap_layers

NO_ACTIVATION = {"MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}
ARGUMENTS: dict[str, tuple[Any, ...]] = {"Threshold": (0.1, 20.0), "MultiheadAttention": (8, 2)}


def tapped(function: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    taken: list[Tensor] = []

    def tap(activation: Tensor) -> Tensor:
        taken.append(activation)
        return activation

    with tap_activations(tap):
        function(x)
    return taken


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("name", nn.modules.activation.__all__)
def test_every_nonlinearity_of_torch_nn_is_tapped_exactly_once(name: str, inplace: bool, training: bool) -> None:
    module = getattr(nn, name)(*ARGUMENTS.get(name, ())).train(training)
    if inplace and not hasattr(module, "inplace"):
        pytest.skip("has no such form")
    if inplace:
        module.inplace = True
    x = torch.randn(3, 4, 6, 8)
    if name == "MultiheadAttention":
        assert not tapped(lambda z: module(z, z, z), x[0])
        return
    expected = 0 if name in NO_ACTIVATION else 1
    torch.manual_seed(0)  # rrelu draws
    taken = tapped(module, x.clone())
    torch.manual_seed(0)
    assert len(taken) == expected
    if expected:
        torch.testing.assert_close(taken[0], module(x.clone()))


IN_PLACE = ("relu_", "leaky_relu_", "elu_", "celu_", "selu_", "rrelu_", "hardtanh_", "threshold_")


@pytest.mark.parametrize("name", IN_PLACE)
def test_functions_in_place_are_tapped(name: str) -> None:
    arguments = (0.1, 2.0) if name == "threshold_" else ()
    assert len(tapped(lambda x: getattr(F, name)(x, *arguments), torch.randn(3, 4))) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(min=0),
        lambda x: torch.clamp(x, 0, 6),
        lambda x: x.clamp(-1, 1),
        lambda x: x.clip(0),
        lambda x: x.clamp_(min=0),
        lambda x: torch.clamp_min(x, 0),
        lambda x: x.clamp_max(0),
        lambda x: x.clamp(min=torch.zeros(4)),
        lambda x: torch.maximum(x, torch.zeros(())),
        lambda x: torch.max(x, 0.1 * x),
        lambda x: torch.minimum(x, -x),
        lambda x: x.tanh_(),
        lambda x: x.sigmoid(),
        torch.special.expit,
        lambda x: F.relu6(x),
    ],
)
def test_rectifiers_by_other_names_are_tapped(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 4)
    (activation,) = tapped(function, x.clone())
    torch.testing.assert_close(activation, function(x.clone()))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=1e-12),
        lambda x: x.abs().clamp(1e-6, 1 - 1e-6).log(),
        lambda x: x.clamp_min(1e-3),
        lambda x: F.normalize(x),
        lambda x: x.max(),
        lambda x: x.max(1),
        lambda x: torch.max(x, dim=1, keepdim=True),
        lambda x: x.max(1, keepdim=True).values,
        lambda x: x.long().clamp(-2, 2),  # indices
        lambda x: F.layer_norm(x, (4,)),
        lambda x: x.softmax(1),
    ],
)
def test_guards_pooling_indices_and_norms_are_none(function: Callable[[Tensor], Any]) -> None:
    assert not tapped(function, torch.randn(3, 4))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.LSTM(4, 5, num_layers=2, batch_first=True), (3, 2, 5)),
        (nn.GRU(4, 5, batch_first=True, bidirectional=True), (3, 2, 10)),
        (nn.RNN(4, 5, batch_first=True), (3, 2, 5)),
        (nn.RNN(4, 5, nonlinearity="relu"), (3, 2, 5)),
    ],
)
def test_of_a_recurrent_layer_the_hidden_states_of_all_steps(module: nn.Module, shape: tuple[int, ...]) -> None:
    assert [a.shape for a in tapped(module, torch.randn(3, 2, 4))] == [shape]


@pytest.mark.parametrize("cell", [nn.LSTMCell(4, 5), nn.GRUCell(4, 5), nn.RNNCell(4, 5)])
def test_of_a_recurrent_cell_its_hidden_state(cell: nn.Module) -> None:
    assert [a.shape for a in tapped(cell, torch.randn(3, 4))] == [(3, 5)]


def test_a_transformer_layer_shows_its_activation_in_evaluation_mode_too() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 7, batch_first=True).eval()
    with torch.no_grad():
        assert [a.shape for a in tapped(layer, torch.randn(3, 2, 4))] == [(3, 2, 7)]


def test_a_substitute_takes_the_place_of_an_output() -> None:
    model = nn.Sequential(nn.GRU(4, 5, batch_first=True))
    with tap_layers(model, ["0"], torch.zeros_like):
        output, hidden = model(torch.randn(3, 2, 4))
    assert not output.any()
    assert hidden.any()


def test_activations_have_names() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 6), nn.GELU())
            self.own = Gate()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.own(self.block(x)))
            out: Tensor = self.relu(F.relu_(x.tanh()))
            return out

    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.glu(x)

    x = torch.randn(2, 4)
    output, activations = named_activations(Model(), x)
    names = ["block.1", "glu in own", "relu", "tanh", "relu #2", "relu #3"]
    assert [(a.name, tuple(a.shape)) for a in activations] == list(
        zip(names, [(2, 6), (2, 3), (2, 3), (2, 3), (2, 3), (2, 3)], strict=True)
    )
    assert output.shape == (2, 3)
    assert [a.is_output for a in activations] == [False] * 5 + [True]
