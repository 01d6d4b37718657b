"""Products where second derivatives of torch are wrong, missing or odd, and where the data change between products."""

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.objective import loss_and_gradient
from analysis.operators import hessian
from analysis.problem import Problem, make_problem
from analysis.spectrum import eigs
from tests.analysis.test_products import assert_right, dense, truth
from tests.command_line import program


def test_an_asymmetric_second_derivative_is_refused_and_a_saturated_loss_is_not() -> None:
    class Wrong(torch.autograd.Function):
        """tanh whose second derivative forgets a factor for one of the entries."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            x, w = ctx.saved_tensors
            return gradients[0] * w.detach(), (gradients[0] * x).sum(0)

    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.w, self.head = nn.Linear(4, 4), nn.Parameter(torch.rand(4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(Wrong.apply(torch.tanh(self.first(x)), self.w))  # type: ignore[no-untyped-call]
            return logits

    torch.manual_seed(0)
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    with pytest.raises(MeasurementError, match="not symmetric"):
        make_problem(M(), "cross_entropy", (x, y))
    for factor in (10.0, 30.0, 100.0, 1000.0):
        for dtype in (torch.float32, torch.float64):
            head = nn.Linear(5, 3)
            nn.init.normal_(head.weight, std=factor)
            model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), head).to(dtype)
            make_problem(model, "cross_entropy", (x, model(x.to(dtype)).argmax(1)))


def test_what_torch_cannot_differentiate_twice_is_refused_by_a_sentence() -> None:
    def alignment(outputs: Tensor, targets: Tensor) -> Tensor:
        steps = outputs.reshape(len(outputs), 4, 3).log_softmax(-1).transpose(0, 1)
        lengths = torch.ones(len(targets), dtype=torch.long)
        return F.ctc_loss(steps, targets, 4 * lengths, lengths)

    with pytest.raises(MeasurementError, match=r"no second derivative.*_ctc_loss"):
        make_problem(nn.Linear(5, 12), alignment, (torch.randn(6, 5), torch.randint(1, 3, (6, 1))))


@pytest.mark.parametrize("options", [{"sparse": True}, {"scale_grad_by_freq": True}, {"padding_idx": 0}])
def test_embeddings(options: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3, **options), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)).double()
    x, y = torch.randint(5, (6, 2)), torch.randint(2, (6,))
    plain = copy.deepcopy(model)
    for name in ("sparse", "scale_grad_by_freq"):
        setattr(plain[0], name, False)
    assert_right(model, F.cross_entropy, x, y, truth(plain, F.cross_entropy, x, y))


def test_an_embedding_that_rescales_its_weights_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=1.0), nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(MeasurementError, match="max_norm"):
        make_problem(model, "cross_entropy", (torch.randint(5, (6, 2)), torch.randint(2, (6,))))


@pytest.mark.parametrize("before", [1, 2])
def test_a_complex_layer_counts_as_pairs_of_real_numbers(before: int) -> None:
    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.randn(before, dtype=torch.float64))  # so that pairs begin at odd places too
            self.first, self.head = nn.Linear(4, 3, dtype=torch.complex128), nn.Linear(3, 2, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.first(x.to(torch.complex128)).abs().tanh() + self.shift.sum())
            return logits

    torch.manual_seed(0)
    model = M()
    x, y = torch.randn(6, 4).double(), torch.randint(2, (6,))

    def plain(theta: Tensor) -> Tensor:
        shift, w, b, v, c = theta.split([before, 24, 6, 6, 2])
        w, b = torch.complex(*w.view(12, 2).T).view(3, 4), torch.complex(*b.view(3, 2).T)
        z = F.linear(x.to(torch.complex128), w, b)
        return F.cross_entropy(F.linear(z.abs().tanh() + shift.sum(), v.view(2, 3), c), y)

    theta = torch.cat([torch.view_as_real(p.detach()).flatten() for p in model.first.parameters()])
    theta = torch.cat([model.shift.detach(), theta, *[p.detach().flatten() for p in model.head.parameters()]])
    expected: Any = torch.autograd.functional.hessian(plain, theta)
    assert_right(model, F.cross_entropy, x, y, expected)
    with pytest.raises(MeasurementError, match="complex"):
        eigs(make_problem(model, F.cross_entropy, (x, y)), backend="pyhessian")


CHANNELS_LAST = """
import torch
from torch import nn
from analysis.layer_blocks import LayerBlocks
from analysis.operators import gauss_newton, hessian
from analysis.problem import make_problem
torch.manual_seed(0)
body = [nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten()]
model = nn.Sequential(*body, nn.Linear(36, 3)).double()
x, y = torch.randn(6, 4, 5, 5, dtype=torch.float64), torch.randint(3, (6,))
found = []
for layout in (torch.contiguous_format, torch.channels_last):
    model.to(memory_format=layout)
    problem = make_problem(model, "cross_entropy", (x.to(memory_format=layout), y), chunk_size=4)
    v = torch.ones(problem.size, dtype=torch.float64)
    blocks = LayerBlocks(problem)
    layers = blocks({n: torch.ones(1, blocks.size(n), dtype=torch.float64) for n in blocks.layers})
    alone = problem.select(["2.weight"])
    own = torch.ones(4, dtype=torch.float64)
    products = [hessian(problem)(v), gauss_newton(problem)(v), hessian(alone)(own)]
    found.append([*products, *blocks.starts().values(), *layers.values()])
for a, b in zip(*found, strict=True):
    torch.testing.assert_close(a, b)
print("same")
"""


def test_group_normalisation_of_channels_last_images() -> None:
    """In a process of its own, which torch would end."""
    done = program(sys.executable, "-c", CHANNELS_LAST)
    assert done.stdout.strip() == "same", f"{done.returncode} {done.stderr[-500:]}"


class Waves(nn.Module):
    """Two layers of waves so short that float32 rounds their phases."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.sin(self.frequency * self.second(torch.sin(self.frequency * self.first(x))))
        logits: Tensor = self.head(waves)
        return logits


@pytest.mark.parametrize("frequency", [1e3, 1e4, 1e5])
def test_rounding_is_told_from_a_wrong_derivative(frequency: float) -> None:
    torch.manual_seed(0)
    model, x, y = Waves(frequency), torch.randn(6, 4), torch.randint(3, (6,))
    with pytest.raises(MeasurementError, match=r"Rounding in float32 .* measure it in float64"):
        make_problem(model, "cross_entropy", (x, y))
    make_problem(model, "cross_entropy", (x, y), dtype=torch.float64)


class Tokens(nn.Module):
    """Two normalisations of images, then tokens made of the pixels: what flows back lies channels last."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), norm(3), nn.Tanh(), nn.Conv2d(3, 3, 3), norm(3))
        self.norm, self.head = nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.body(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.norm(tokens).sin().mean(1))
        return logits


class Doubled(nn.BatchNorm2d):
    """Changes what the normalisation returns in place."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).mul_(2)


@pytest.mark.parametrize(
    "norm",
    [
        lambda channels: nn.BatchNorm2d(channels),
        lambda channels: Doubled(channels),
        lambda channels: nn.InstanceNorm2d(channels, affine=True),
        lambda channels: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True),
    ],
    ids=["batch", "batch, in place", "instance", "instance, tracked"],
)
def test_normalisation_of_a_single_image_before_tokens(norm: Callable[[int], nn.Module]) -> None:
    """torch's own gradient of one image is wrong there on a CPU; of several, which the truth takes, it is right."""
    torch.manual_seed(0)
    model = Tokens(norm).double().eval()
    x, y = torch.randn(3, 2, 4, 4).double(), torch.tensor([0, 1, 1])
    make_problem(model, F.cross_entropy, (x, y))
    one = make_problem(model, F.cross_entropy, (x[:1], y[:1]))
    torch.testing.assert_close(dense(hessian(one)), truth(model, F.cross_entropy, x[[0, 0]], y[[0, 0]]))


# --- data that change


class Changing:
    """Targets all alike and a loss that does not see what changes: equal losses, other curvature, from pass 4 on."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        torch.manual_seed(0)
        self.x, self.passes, self.change = torch.randn(6, 4).double(), 0, change

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        x = self.change(self.x) if self.passes > 3 else self.x
        for i in range(0, len(x), 2):
            yield x[i : i + 2], torch.zeros(len(x[i : i + 2]), dtype=torch.int64)


@pytest.mark.parametrize(
    "change", [lambda x: 2 * x, lambda x: torch.cat([x[:-1], 2 * x[-1:]]), lambda x: x.flip(1), lambda x: x[:4]]
)
@pytest.mark.parametrize("kept", [0, 2])
def test_data_that_change_are_noticed_where_losses_are_equal(change: Any, kept: int) -> None:
    model = nn.Linear(4, 3, bias=False).double()
    nn.init.zeros_(model.weight)  # the loss is log 3 whatever the inputs are

    def problem() -> Problem:
        made = make_problem(model, "cross_entropy", Changing(change), memory=1, chunk_size=2)
        return replace(made, cached_samples=kept)

    operator = hessian(problem())
    v = torch.ones(operator.size, dtype=torch.float64)
    operator(v)
    with pytest.raises(MeasurementError, match="data changed"):
        operator(v)
    again = problem()
    hessian(again)(v)
    with pytest.raises(MeasurementError, match="data changed"):  # also between operators
        loss_and_gradient(again)


def test_kept_graphs_and_samples_in_another_order_do_not_mix() -> None:
    model = nn.Linear(4, 3).double()
    data = Changing(lambda x: x.flip(0))
    problem = make_problem(model, "cross_entropy", data, memory=1, chunk_size=2)
    v = torch.ones(15, dtype=torch.float64)
    first, operator = hessian(problem)(v), hessian(replace(problem, cached_samples=2))
    torch.testing.assert_close(hessian(problem)(v), first)  # another order is the same sum
    data.passes = 0
    operator(v)
    data.passes = 9
    with pytest.raises(MeasurementError, match="data changed"):
        operator(v)


# --- what works in place


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        x -= 0.5
        x /= 0.25
        return self.first(x)


def loss_in_place(outputs: Tensor, targets: Tensor) -> Tensor:
    targets[targets == 1] = 0
    return F.cross_entropy(outputs, targets)


def test_what_works_in_place_leaves_the_caller_s_data_as_they_were() -> None:
    torch.manual_seed(0)
    model = InPlace().double()
    x, y = torch.randn(7, 4).double(), torch.randint(3, (7,))
    before = x.clone(), y.clone()
    problem = make_problem(model, loss_in_place, (x, y), chunk_size=2)
    expected = truth(model.first, F.cross_entropy, (before[0] - 0.5) / 0.25, before[1].masked_fill(before[1] == 1, 0))
    for _ in range(2):
        torch.testing.assert_close(dense(hessian(problem)), expected, rtol=1e-9, atol=1e-11)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
