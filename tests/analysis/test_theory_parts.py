"""The parts of the chain of bounds: patches of convolutions, top curvatures, and what maps stretch."""

import math

import pytest
import torch
from torch import Tensor, nn

from analysis.layers import find_layers
from analysis.theory.networks import is_piecewise_linear, modules_after, squared_lipschitz
from analysis.theory.samplewise import as_outputs, at_positions, has_patches, patches, squared_norms, top_curvatures
from analysis.theory.statements import exactly
from flatlab.federated.models import FlattenPixels
from tests.analysis.test_theory_chain import cnn, problem_of, samples


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(5, 3), (4, 5)),
        (nn.Linear(5, 3), (4, 7, 5)),  # a layer applied at every position of a sequence
        (nn.Linear(5, 3, bias=False), (4, 5)),
        (nn.Conv2d(2, 3, 3, stride=2, padding=1), (4, 2, 7, 6)),
        (nn.Conv2d(2, 3, (2, 3), dilation=2, bias=False), (4, 2, 8, 9)),
    ],
)
def test_patches_times_the_weights_are_the_outputs(module: nn.Module, shape: tuple[int, ...]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = module.double()

        def forward(self, x: Tensor) -> Tensor:
            s: Tensor = self.layer(x)
            return s.flatten(1)

    x, _ = samples(*shape)
    (layer,) = find_layers(problem_of(Model(), x, torch.zeros(len(x), dtype=torch.int64)))
    assert has_patches(layer)
    parameters = dict(module.named_parameters())
    W = parameters["weight"].flatten(1)
    extended = torch.cat([W, parameters["bias"][:, None]], 1) if "bias" in parameters else W
    rows, s = patches(layer, x), module(x)
    torch.testing.assert_close(rows @ extended.T, at_positions(module, s))
    torch.testing.assert_close(as_outputs(module, at_positions(module, s), s), s)
    spectral, frobenius = squared_norms(rows)
    torch.testing.assert_close(spectral, torch.linalg.matrix_norm(rows, 2) ** 2)
    torch.testing.assert_close(frobenius, torch.linalg.matrix_norm(rows) ** 2)


@pytest.mark.parametrize(
    "module", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(2, 2, 3, padding_mode="circular", padding=1)]
)
def test_other_convolutions_have_no_patches(module: nn.Conv2d) -> None:
    model = nn.Sequential(module, nn.Flatten()).double()
    x, _ = samples(3, module.in_channels, 4, 4)
    (layer,) = find_layers(problem_of(model, x, torch.zeros(3, dtype=torch.int64)))
    assert not has_patches(layer)


@pytest.mark.parametrize("size", [1, 4, 30])
def test_top_curvatures_are_the_largest_eigenvalues(size: int) -> None:
    """Of a zero, a negative definite, a low-rank and an indefinite matrix at once."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(4, size, size, generator=generator, dtype=torch.float64)
    B = A + A.mT
    B[0] = 0
    B[1] = -A[1] @ A[1].T
    B[2] = A[2, :, :1] @ A[2, :, :1].T
    found = top_curvatures(lambda u: (B @ u[:, :, None])[:, :, 0], A[:, 0], torch.ones(4).double(), 1e-6, 1e-6)
    expected = torch.linalg.eigvalsh(B)[:, -1].clamp(min=0)
    scale = torch.linalg.matrix_norm(B, 2)
    assert (found.values <= expected + 1e-12 * scale).all()
    assert (found.uppers >= expected - 1e-12 * scale).all()
    torch.testing.assert_close(found.values, expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(found.uppers, expected, rtol=1e-2, atol=1e-12)


def test_a_top_that_the_start_hides_lies_below_the_upper_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 3000 samples whose search stops early, some with next to no part of the top in their start."""
    spectrum = torch.cat([torch.linspace(-1, 1, 39), torch.tensor([1.3])]).double()
    chance = 1e-3
    like, weights = torch.empty(3000, 40).double(), torch.ones(3000).double()
    monkeypatch.setattr("analysis.theory.samplewise._APART", math.inf)
    found = top_curvatures(spectrum.__rmul__, like, weights, 0.1, chance)
    assert found.steps < 20
    assert (found.values < 1.2).any()
    assert (found.uppers < 1.3).sum() <= 3000 * chance
    monkeypatch.undo()
    found = top_curvatures(spectrum.__rmul__, like, weights, 0.1, chance)
    assert (found.uppers < 1.3).sum() <= 3000 * chance
    assert found.uppers.mean() <= 1.1 * 1.3


def test_lipschitz_constants_are_matrix_norms() -> None:
    conv, x = nn.Conv2d(2, 3, 3, stride=2, padding=1).double(), samples(1, 2, 5, 4)[0]
    matrix = torch.stack(
        [(conv(e[None]) - conv(torch.zeros_like(x)))[0].flatten() for e in torch.eye(40).double().view(40, 2, 5, 4)]
    )
    norm2 = squared_lipschitz([conv, nn.ReLU(), nn.MaxPool2d(2), FlattenPixels()], x)
    assert norm2 is not None
    true = float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    assert norm2.low <= true * (1 + 1e-12)
    assert true <= norm2.high
    assert norm2.high < 1.01 * true
    linear = nn.Linear(4, 2).double()
    squared = float(torch.linalg.matrix_norm(linear.weight.detach(), 2)) ** 2
    assert squared_lipschitz([nn.LeakyReLU(0.3), linear], torch.zeros(1, 4).double()) == exactly(squared)


@pytest.mark.parametrize("module", [nn.MaxPool2d(3, stride=1), nn.LeakyReLU(2.0), nn.Tanh(), nn.GroupNorm(1, 2)])
def test_other_maps_have_no_such_constant(module: nn.Module) -> None:
    assert squared_lipschitz([module], torch.zeros(1, 2, 5, 5)) is None


def test_what_comes_after_a_layer() -> None:
    model = cnn()
    after = modules_after(model, "3")
    assert after is not None
    assert [type(module) for module in after] == [nn.ReLU, FlattenPixels, nn.Linear]
    assert is_piecewise_linear(after)
    assert not is_piecewise_linear([nn.Tanh()])
    assert modules_after(nn.ModuleList([nn.Linear(1, 1)]), "0") is None
