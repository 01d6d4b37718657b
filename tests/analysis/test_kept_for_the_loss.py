"""Losses that read what the model kept in its run: a term in an attribute, an activation that a hook noted."""

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.activations import forward_pass
from analysis.derivatives import gradients
from analysis.errors import MeasurementError
from analysis.objective import loss_at
from analysis.operators import gauss_newton, hessian
from analysis.output_refusals import refuse_flat, require_rows, require_tensor
from analysis.problem import make_problem
from analysis.spectrum import eigs
from analysis.theory.reference import Reference

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).double()
Y = torch.arange(12) % 3

Read = Callable[[], Any]


class Sparse(nn.Module):
    """Hands its hidden activations to `note`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.a(x))
        self.note(hidden)
        logits: Tensor = self.b(hidden)
        return logits

    def note(self, hidden: Tensor) -> None: ...


class Recorder:
    """Its methods are forward hooks."""

    def __init__(self) -> None:
        self.act: Tensor | None = None
        self.acts: dict[nn.Module, Tensor] = {}

    def once(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.act = torch.tanh(output)

    def by_module(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.acts[module] = torch.tanh(output)


def in_an_attribute() -> tuple[nn.Module, Read]:
    class Kind(Sparse):
        act: Tensor | None = None

        def note(self, hidden: Tensor) -> None:
            self.act = hidden

    model = Kind()
    return model, lambda: model.act


def in_a_new_attribute() -> tuple[nn.Module, Read]:
    class Kind(Sparse):
        def note(self, hidden: Tensor) -> None:
            self.act = hidden

    model = Kind()
    return model, lambda: model.act


def in_a_buffer() -> tuple[nn.Module, Read]:
    class Kind(Sparse):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("act", torch.zeros(()))

        def note(self, hidden: Tensor) -> None:
            self.act = hidden

    model = Kind()
    return model, lambda: model.act


def in_a_list() -> tuple[nn.Module, Read]:
    class Kind(Sparse):
        def __init__(self) -> None:
            super().__init__()
            self.acts: list[Tensor] = []

        def note(self, hidden: Tensor) -> None:
            self.acts.clear()
            self.acts.append(hidden)

    model = Kind()
    return model, lambda: model.acts[0]


def in_an_object() -> tuple[nn.Module, Read]:
    class Kind(Sparse):
        def __init__(self) -> None:
            super().__init__()
            self.kept = SimpleNamespace(deep={"acts": deque([None], maxlen=1), "set": set()})

        def note(self, hidden: Tensor) -> None:
            self.kept.deep["acts"].append(hidden)
            self.kept.deep["set"] = {hidden}

    model = Kind()
    return model, lambda: 0.5 * (model.kept.deep["acts"][0] + next(iter(model.kept.deep["set"])))


def by_a_bound_hook() -> tuple[nn.Module, Read]:
    model, recorder = Sparse(), Recorder()
    model.a.register_forward_hook(recorder.once)
    return model, lambda: recorder.act


def by_a_bound_hook_for_each_module() -> tuple[nn.Module, Read]:
    model, recorder = Sparse(), Recorder()
    model.a.register_forward_hook(recorder.by_module)
    return model, lambda: torch.stack(list(recorder.acts.values())).mean(0) + 0 * recorder.acts[model.a]


def within_wrappers() -> tuple[nn.Module, Read]:
    model, read = in_an_attribute()
    compiled: Any = torch.compile(model, backend="eager")
    return nn.DataParallel(nn.Sequential(compiled)), read


KEPT = (
    in_an_attribute, in_a_new_attribute, in_a_buffer, in_a_list, in_an_object, by_a_bound_hook,
    by_a_bound_hook_for_each_module, within_wrappers,
)  # fmt: skip


def penalised(read: Read) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, t: F.cross_entropy(z, t) + 5 * read().square().sum(1).mean()


def dense(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, float]:
    """The Hessian (P, P) and the loss of the model as it is."""
    parameters, total = list(model.parameters()), loss(model(X), Y)
    slopes = torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters, create_graph=True)])
    rows = [torch.cat([g.flatten() for g in gradients([slope], parameters)]) for slope in slopes]
    return torch.stack(rows), total.item()


@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("kept", KEPT)
def test_a_loss_reads_what_its_own_run_left(kept: Callable[[], tuple[nn.Module, Read]], ran_before: bool) -> None:
    model, read = kept()
    H, total = dense(model, penalised(read))
    model, read = kept()
    loss = penalised(read)
    if ran_before:
        with torch.no_grad():
            model(X[:5])
        before = read().clone()
    problem = make_problem(model, loss, (X, Y), chunk_size=5)
    torch.testing.assert_close(hessian(problem)(torch.eye(problem.size, dtype=torch.float64)), H)
    assert loss_at(problem, problem.point()) == pytest.approx(total, rel=1e-12)
    if ran_before:
        assert read().equal(before)


@pytest.mark.filterwarnings("ignore")
def test_whatever_takes_the_loss_shows_it_what_was_left() -> None:
    model, read = by_a_bound_hook()
    loss = penalised(read)
    H, total = dense(model, loss)
    problem = make_problem(model, loss, (X, Y))
    top = pytest.approx(torch.linalg.eigvalsh(H)[-1].item(), rel=1e-5)
    with torch.no_grad():
        model(X[:5])
    assert eigs(problem, backend="pyhessian").eigenvalues[0].value == top
    single = make_problem(model, loss, (X, Y), dtype=torch.float32)  # confirmed by a copy of its copy, in float64
    assert eigs(single, layers=[]).eigenvalues[0].value == top
    reference, v = Reference(problem), torch.ones(problem.size, dtype=torch.float64)
    torch.testing.assert_close(reference.product(v), H @ v)
    assert reference.loss(reference.theta) == pytest.approx(total)
    with pytest.raises(MeasurementError, match="beside the model's outputs"):
        gauss_newton(problem)(v)


TERMS: list[Tensor] = []


class Fills(Sparse):
    """Adds to a list that is no part of it, which the loss empties."""

    def note(self, hidden: Tensor) -> None:
        TERMS.append(5 * hidden.square().sum(1).mean())


def emptying(z: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(z, t) + TERMS.pop()


def test_every_run_is_followed_by_one_of_the_loss_that_empties_a_list() -> None:
    model = Fills()
    H, total = dense(model, emptying)
    problem = make_problem(model, emptying, (X, Y))
    assert forward_pass(problem).loss == pytest.approx(total)
    assert eigs(problem).loss == pytest.approx(total)
    assert eigs(problem).eigenvalues[0].value == pytest.approx(torch.linalg.eigvalsh(H)[-1].item())
    reference = Reference(problem)
    reference.stretch2(torch.ones_like(reference.theta))
    require_tensor(problem)
    require_rows(problem)
    refuse_flat(problem)
    assert not TERMS
