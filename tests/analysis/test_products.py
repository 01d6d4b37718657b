"""Products on models and losses that are easily measured wrong, each against a dense Hessian without our code."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from analysis.errors import MeasurementError
from analysis.layer_blocks import LayerBlocks
from analysis.objective import loss_and_gradient
from analysis.operators import SymmetricOperator, gauss_newton, hessian
from analysis.problem import Problem, make_problem
from analysis.spectrum import Backend, eigs
from tests.command_line import SECONDS

Loss = Callable[[Any, Tensor], Tensor]


def dense(operator: SymmetricOperator) -> Tensor:
    return operator(torch.eye(operator.size, dtype=operator.torch_dtype))


def truth(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
    """d^2 L / d theta^2 over the model's parameters in order."""
    model = copy.deepcopy(model)
    names, parameters = zip(*model.named_parameters(), strict=True)
    sizes = [p.numel() for p in parameters]

    def objective(theta: Tensor) -> Tensor:
        pieces = [t.view_as(p) for t, p in zip(theta.split(sizes), parameters, strict=True)]
        return loss(functional_call(model, dict(zip(names, pieces, strict=True)), (x,)), y)

    matrix: Tensor = torch.autograd.functional.hessian(objective, torch.cat([p.detach().flatten() for p in parameters]))
    return matrix


def assert_right(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, expected: Tensor | None = None) -> Problem:
    """Hessian, layers' blocks and gradient, with graphs kept and thrown away."""
    expected = truth(model, loss, x, y) if expected is None else expected
    for memory in (1 << 30, 1):
        problem = make_problem(model, loss, (x, y), memory=memory, chunk_size=2)
        torch.testing.assert_close(dense(hessian(problem)), expected, rtol=1e-9, atol=1e-11)
        blocks = LayerBlocks(problem)
        for name, layer in blocks.layers.items():
            at, where = 0, []
            for full, parameter in problem.parameters.items():
                where += list(range(at, at + parameter.numel())) if full in layer.parameters.values() else []
                at += parameter.numel()
            block = blocks({name: torch.eye(len(where), dtype=torch.float64)})[name]
            torch.testing.assert_close(block, expected[where][:, where], rtol=1e-9, atol=1e-11)
    return problem


# --- weights that are computed


class Standardised(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        flat = w.flatten(1)
        return ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 0.1)).view_as(w)


class Gain(nn.Module):
    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, len(w)))

    def forward(self, w: Tensor) -> Tensor:
        return self.gain.view(-1, *[1] * (w.dim() - 1)) * w


def computed(module: nn.Module, how: str) -> Any:
    if how == "spectral":
        return parametrizations.spectral_norm(module)
    if how == "old spectral":
        return nn.utils.spectral_norm(module)
    if how == "weight norm":
        return parametrizations.weight_norm(module)
    if how == "standardised":
        return parametrize.register_parametrization(module, "weight", Standardised())
    if how == "gain":
        return parametrize.register_parametrization(module, "weight", Gain(module.weight))  # type: ignore[arg-type]
    return module


HOW = ["spectral", "old spectral", "weight norm", "standardised", "gain", "plain"]


@given(
    how=st.tuples(*[st.sampled_from(HOW)] * 3),
    phi=st.sampled_from([nn.Tanh, nn.ReLU, nn.GELU]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=4, deadline=None)
def test_computed_weights(how: tuple[str, str, str], phi: type[nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    body = [computed(nn.Conv2d(1, 2, 2), how[0]), phi(), computed(nn.Conv2d(2, 2, 2), how[1]), phi(), nn.Flatten()]
    model = nn.Sequential(*body, computed(nn.Linear(8, 2), how[2])).double().eval()
    x, y = torch.randn(5, 1, 4, 4).double(), torch.randint(2, (5,))
    loss: Loss = F.cross_entropy
    with PlainWeightNorm():
        expected = truth(model, loss, x, y)
    problem = assert_right(model, loss, x, y, expected)
    kept = dense(gauss_newton(make_problem(model, loss, (x, y), chunk_size=2)))
    torch.testing.assert_close(dense(gauss_newton(problem)), kept, rtol=1e-10, atol=1e-12)


class PlainWeightNorm(TorchFunctionMode):
    """g v / |v| by elementary operations: torch's own has a wrong second derivative on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch._weight_norm:
            return func(*args, **(kwargs or {}))
        v, g, dim = args
        assert dim == 0
        return g * v / v.square().flatten(1).sum(1).sqrt().view_as(g)


# --- layers


def test_a_weight_in_the_loss_where_it_has_no_gradient() -> None:
    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(8, 5), nn.Linear(5, 3)
            self.anchor = nn.Buffer(self.first.weight.detach().clone())

        def forward(self, x: Tensor) -> Any:
            return self.head(torch.tanh(self.first(x))), 5 * (self.first.weight - self.anchor).square().sum()

    torch.manual_seed(0)
    x, y = torch.randn(6, 8).double(), torch.randint(3, (6,))
    model = M().double()
    problem = assert_right(model, lambda o, t: F.cross_entropy(o[0], t) + o[1], x, y)
    assert list(LayerBlocks(problem).suffixes("head"))
    with pytest.raises(MeasurementError):
        LayerBlocks(problem).suffixes("first")
    with pytest.raises(MeasurementError, match="one tensor"):
        gauss_newton(problem)(torch.ones(problem.size))


@pytest.mark.parametrize("how", ["again", "tied", "never"])
def test_a_layer_that_acts_otherwise_on_later_samples_only(how: str) -> None:
    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            if how == "tied":
                self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            late = (x[:, :1] > 1).to(x)
            z = torch.tanh(self.first(x))
            if how == "again" and late.any():
                z = z + late * self.first(z)
            if how == "tied" or (how == "never" and late.any()):
                z = z + late * torch.tanh(self.second(z))
            logits: Tensor = self.head(z)
            return logits

    torch.manual_seed(0)
    x, y = torch.randn(6, 4).double().clamp(max=0.9), torch.randint(3, (6,))
    x[4:, 0] = 2.0
    problem = assert_right(M().double(), F.cross_entropy, x, y)
    assert list(LayerBlocks(problem).suffixes("head"))
    with pytest.raises(MeasurementError):
        LayerBlocks(problem).suffixes("first" if how != "never" else "second")


def test_a_layer_that_is_never_used_has_eigenvalue_zero() -> None:
    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.used(x)
            return logits

    torch.manual_seed(0)
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    backends: tuple[Backend, ...] = ("flatlab", "pyhessian")
    for backend in backends:
        report = eigs(make_problem(M(), "cross_entropy", (x, y)), backend=backend)
        assert [layer.eigenvalues[0].value > 0.01 for layer in report.layers] == [True, False]
        assert report.layers[1].eigenvalues[0].value == pytest.approx(0, abs=1e-6)
    alone = make_problem(M(), "cross_entropy", (x, y), parameters=["unused.weight"])
    assert loss_and_gradient(alone)[1].abs().max() == 0
    for make in (hessian, gauss_newton):
        assert dense(make(alone)).abs().max() == 0


# --- what holds the parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_that_closes_over_the_parameters(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).to(dtype)
    x, y = torch.randn(6, 4).double(), torch.randint(2, (6,))
    expected = truth(copy.deepcopy(model).double(), F.cross_entropy, x, y)

    def decayed(z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(z, t) + 0.5 * torch.cat([p.flatten() for p in model.parameters()]).square().sum()

    problem = make_problem(model, decayed, (x, y), chunk_size=6, dtype=torch.float64)
    decay = torch.eye(len(expected), dtype=torch.float64)
    torch.testing.assert_close(dense(hessian(problem)), expected + decay)
    with pytest.raises(MeasurementError):
        LayerBlocks(problem).suffixes("0")
    with pytest.raises(MeasurementError, match="weight decay"):
        gauss_newton(problem)(torch.ones(problem.size))


def test_a_model_that_reaches_its_parameters_otherwise() -> None:
    """A function made in __init__ belongs to the model that was copied; a list hides a parameter from the modules."""

    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.first, self.head = nn.Parameter(torch.tensor(1.3)), nn.Linear(4, 4), nn.Linear(4, 3)
            self.phi = lambda t: torch.tanh(self.scale * t)
            self.hidden = [self.first.weight]

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.phi(self.first(x)) + F.linear(x, self.hidden[0]))  # type: ignore[no-untyped-call]
            return logits

    torch.manual_seed(0)
    x, y = torch.randn(6, 4).double(), torch.randint(3, (6,))
    model = M().double()

    def plain(theta: Tensor) -> Tensor:
        scale, w, b, v, c = theta.split([1, 16, 4, 12, 3])
        z = torch.tanh(scale * F.linear(x, w.view(4, 4), b)) + F.linear(x, w.view(4, 4))
        return F.cross_entropy(F.linear(z, v.view(3, 4), c), y)

    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    expected: Any = torch.autograd.functional.hessian(plain, theta)
    assert_right(model, F.cross_entropy, x, y, expected)


def test_a_tensor_computed_from_the_parameters_beforehand_is_refused() -> None:
    model = nn.Linear(4, 3)
    decay = torch.cat([p.flatten() for p in model.parameters()]).square().sum()
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    with pytest.raises(MeasurementError, match="computed from them before"):
        make_problem(model, lambda z, t: F.cross_entropy(z, t) + decay, (x, y))


# --- second derivatives of torch's


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
    model = nn.Sequential(nn.EmbeddingBag(5, 3), nn.Linear(3, 2))
    with pytest.raises(MeasurementError, match=r"no second derivative.*embedding_bag"):
        make_problem(model, "cross_entropy", (torch.randint(5, (6, 3)), torch.randint(2, (6,))))


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
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", CHANNELS_LAST], capture_output=True, text=True, cwd=root, timeout=SECONDS
    )
    assert done.stdout.strip() == "same", f"{done.returncode} {done.stderr[-500:]}"


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_parts(reentrant: bool) -> None:
    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv, self.head = nn.Conv2d(1, 2, 2), nn.Conv2d(2, 2, 2), nn.Linear(8, 2)
            self.saving = True

        def part(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(x))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x))
            x = checkpoint(self.part, x, use_reentrant=reentrant) if self.saving else self.part(x)
            logits: Tensor = self.head(x.flatten(1))
            return logits

    torch.manual_seed(0)
    model = M().double()
    x, y = torch.randn(5, 1, 4, 4).double(), torch.randint(2, (5,))
    plain = copy.deepcopy(model)
    plain.saving = False
    if reentrant:
        with pytest.raises(MeasurementError, match="checkpoint"):
            make_problem(model, F.cross_entropy, (x, y))
    else:
        assert_right(model, F.cross_entropy, x, y, truth(plain, F.cross_entropy, x, y))


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
