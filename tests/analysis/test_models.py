"""Models as people have them: compiled, wrapped, in half precision, with attributes that cannot be copied."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.objective import loss_at
from analysis.operators import hessian
from analysis.problem import make_problem
from analysis.spectrum import eigs

X, Y = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def matrix(model: nn.Module, data: Any = (X, Y), **options: Any) -> Tensor:
    operator = hessian(make_problem(model, "cross_entropy", data, dtype=torch.float64, **options))
    return operator(torch.eye(operator.size, dtype=torch.float64))


def compiled() -> nn.Module:
    model: Any = torch.compile(network())
    assert isinstance(model, nn.Module)
    return model


def compiled_inside() -> nn.Module:
    model = network()
    model[0] = torch.compile(model[0])  # type: ignore[assignment]
    return model


def compiled_in_place() -> nn.Module:
    model = network()
    model.compile()
    return model


@pytest.mark.parametrize(
    "wrapped",
    [
        compiled,
        compiled_inside,
        compiled_in_place,
        lambda: nn.DataParallel(network()),
        lambda: nn.DataParallel(compiled()),
    ],
    ids=["compiled", "compiled inside", "compiled in place", "parallel", "both"],
)
def test_wrappers_are_taken_off(wrapped: Any) -> None:
    problem = make_problem(wrapped(), "cross_entropy", (X, Y), parameters=["0.weight"])
    assert list(problem.parameters) == ["0.weight"]
    torch.testing.assert_close(matrix(wrapped()), matrix(network()))


def test_names_of_a_wrapped_model_are_understood() -> None:
    model = compiled()
    names = [name for name, _ in model.named_parameters()]
    assert make_problem(model, "cross_entropy", (X, Y), parameters=names).size == 23


class Keeps(nn.Module):
    """Keeps an activation, also inside a container."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.kept: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.net(x)
        self.last = outputs
        self.kept = [{"outputs": outputs}]
        return outputs


def test_a_model_that_keeps_an_activation() -> None:
    model = Keeps()
    model(X)
    torch.testing.assert_close(matrix(model), matrix(network()))
    assert model.last.requires_grad


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_weight_norm_has_the_gradient_of_its_parameters() -> None:
    model = network()
    model[0] = nn.utils.weight_norm(model[0])
    problem = make_problem(model, "cross_entropy", (X, Y), dtype=torch.float64)
    assert "0.weight_g" in problem.parameters
    assert hessian(problem)(torch.ones(problem.size, dtype=torch.float64)).abs().max() > 0


def test_what_cannot_be_copied_is_said() -> None:
    model = network()
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(MeasurementError, match=r"cannot be copied \(TypeError: cannot pickle '_thread.lock'"):
        make_problem(model, "cross_entropy", (X, Y))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_and_said(half: torch.dtype) -> None:
    model = network().to(half)
    with pytest.warns(UserWarning, match="are raised to float32"):
        problem = make_problem(model, "cross_entropy", (X.to(half), Y))
    assert problem.dtype == torch.float32
    torch.testing.assert_close(matrix(model), matrix(network().to(half).double()))
    assert next(model.parameters()).dtype == half


class Casts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.net(x).bfloat16()).float()


class Detached(nn.Module):
    """Has a tensor that requires a gradient and is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = network(), torch.ones(1, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (Casts(), {}, "computes in bfloat16"),
        (network(), {"dtype": torch.bfloat16}, "float32 or float64, not in bfloat16"),
        (Detached(), {}, "require a gradient and are no parameters"),
        (nn.LazyLinear(2), {}, "without values"),
        (nn.Linear(4, 2, device="meta"), {}, "without values"),
    ],
)
def test_what_is_refused_with_its_own_reason(model: nn.Module, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(MeasurementError, match=reason):
        make_problem(model, "cross_entropy", (X, Y), **options)


def test_a_compiled_loss_is_taken_out_too() -> None:
    problem = make_problem(network(), torch.compile(F.cross_entropy), (X, Y), dtype=torch.float64)
    operator = hessian(problem)
    torch.testing.assert_close(operator(torch.eye(operator.size, dtype=torch.float64)), matrix(network()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["flatlab", "pyhessian"])
@pytest.mark.parametrize("layers", [None, []], ids=["layers", "whole"])
def test_a_weight_that_a_model_keeps_from_a_run_hinders_no_search(backend: Any, layers: list[str] | None) -> None:
    """Old weight_norm leaves a tensor with its graph in the module, which copies for float64 and PyHessian meet too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2))
    x, y = torch.randn(20, 4), torch.randint(2, (20,))
    problem = make_problem(model, "cross_entropy", (x, y))
    loss_at(problem, problem.point())
    report = eigs(problem, k=1, backend=backend, layers=layers)
    flat = {name: p.detach() for name, p in model.named_parameters()}

    def loss(theta: Tensor) -> Tensor:
        pieces = theta.split([p.numel() for p in _ordered(flat)])
        g, v, b, W, c = (piece.view_as(p) for piece, p in zip(pieces, _ordered(flat), strict=True))
        first = torch.tanh(x.double() @ (g * v / v.norm(dim=1, keepdim=True)).T + b)
        return F.cross_entropy(first @ W.T + c, y)

    theta = torch.cat([p.double().reshape(-1) for p in _ordered(flat)])
    top = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, theta))[-1]
    assert report.eigenvalues[0].value == pytest.approx(float(top), rel=1e-4)


def _ordered(flat: dict[str, Tensor]) -> list[Tensor]:
    return [flat[name] for name in ("0.weight_g", "0.weight_v", "0.bias", "2.weight", "2.bias")]


class Shared(nn.Module):
    """Holds one module under two names, and runs it twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.register_buffer("scale", torch.ones(1))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.again(torch.tanh(self.first(x))) * self.scale)
        return outputs


@pytest.mark.parametrize("selected", [None, ["head.weight", "head.bias"], ["first.weight"], ["again.bias"]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_under_two_names_keeps_its_weights(selected: list[str] | None, dtype: torch.dtype) -> None:
    """torch's functional_call leaves the weights of its last call in such a module: a random point's, at first."""
    model = Shared()
    problem = make_problem(model, "cross_entropy", (X, Y), parameters=selected, dtype=dtype)
    exact = model.to(dtype)
    own = {name: parameter.detach().clone() for name, parameter in exact.named_parameters()}

    def loss(*chosen: Tensor) -> Tensor:
        given = {**own, **dict(zip(problem.parameters, chosen, strict=True))}
        first = given["first.weight"], given["first.bias"]
        h = F.linear(torch.tanh(F.linear(X.to(dtype), *first)), *first)
        return F.cross_entropy(F.linear(h, given["head.weight"], given["head.bias"]), Y)

    def unchanged() -> None:
        for name, parameter in problem.model.named_parameters():
            assert isinstance(parameter, nn.Parameter)
            assert not parameter.requires_grad
            torch.testing.assert_close(parameter.detach(), own[name], rtol=0, atol=0)

    unchanged()
    point = tuple(own[name] for name in problem.parameters)
    assert loss_at(problem, problem.point()) == pytest.approx(loss(*point).item(), rel=1e-6)
    report = eigs(problem)
    unchanged()
    rows: Any = torch.autograd.functional.hessian(loss, point)
    columns = [torch.cat([b.reshape(a.numel(), -1) for b in row], 1) for a, row in zip(point, rows, strict=True)]
    dense = torch.cat(columns)
    assert report.loss == pytest.approx(loss(*point).item(), rel=1e-6)
    assert report.eigenvalues[0].value == pytest.approx(torch.linalg.eigvalsh(dense.double())[-1].item(), rel=1e-4)
    assert report.converged
    loss_at(problem, problem.point() + 1)
    unchanged()


class Upcasting(nn.Module):
    """Raises to float32 in the ways that models of language do, for the sake of half precision."""

    def __init__(self, *, casts: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = network()
        self.norm = nn.LayerNorm(2)
        self.casts = casts

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        low = torch.float32 if self.casts else x.dtype
        h = h * torch.softmax(h, -1, dtype=low).to(h.dtype)
        frequencies = torch.arange(2, dtype=low) @ torch.eye(2, dtype=torch.int64, device=x.device).to(low)
        h = self.norm((h.float() if self.casts else h) + frequencies).type_as(h)
        outputs: Tensor = h.to(low)
        return outputs


def test_casts_to_float32_take_nothing_from_float64() -> None:
    plain, cast = (matrix(Upcasting(casts=casts)) for casts in (False, True))
    torch.testing.assert_close(cast, plain, rtol=1e-12, atol=1e-14)

    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), targets)

    operator = hessian(make_problem(network(), own, (X, Y), dtype=torch.float64))
    found = operator(torch.eye(operator.size, dtype=torch.float64))
    torch.testing.assert_close(found, matrix(network()), rtol=1e-12, atol=1e-14)


def test_what_is_confirmed_in_float64_is_exact_to_it_despite_casts() -> None:
    problem = make_problem(Upcasting(casts=True), "cross_entropy", (X, Y), dtype=torch.float32)
    exact = torch.linalg.eigvalsh(matrix(Upcasting(casts=False)))
    (top,) = eigs(problem, layers=[], tol=1e-5).eigenvalues
    assert top.confirmed
    assert (exact - top.value).abs().min() <= top.residual


def test_a_view_of_bits_stays_one() -> None:
    class Bits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            pairs = x.contiguous().view(torch.float32)  # two numbers of each float64
            assert pairs.shape[-1] == x.shape[-1] * (2 if x.dtype == torch.float64 else 1)
            outputs: Tensor = self.net(x)
            return outputs

    torch.testing.assert_close(matrix(Bits()), matrix(network()))
