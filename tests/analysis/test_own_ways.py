"""Models and losses that look at their parameters, hold on to their modules, or are asked for in words nobody knows."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.flatness import flatness
from analysis.lanczos import lanczos
from analysis.operators import block, curvature_matrix, hessian, matrix_operator
from analysis.problem import make_problem
from analysis.spectrum import eigs
from analysis.worst_case import worst_case_sharpness

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(24) % 3


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def trained_norm(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy and half the norm of all that trains."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        squares = [p.square().sum() for p in model.parameters() if p.requires_grad]
        return F.cross_entropy(outputs, targets) + 0.5 * torch.stack(squares).sum().sqrt()

    return loss


class Two(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)


class Gated(Two):
    """Scales what it computes where its second layer trains."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        logits: Tensor = self.b(3 * h if self.b.weight.requires_grad else h)
        return logits


@pytest.mark.parametrize("made", ["loss", "model", "frozen"])
def test_a_block_is_of_the_same_loss_as_the_whole(made: str) -> None:
    model = mlp() if made == "loss" else Gated().double()
    first, second = ("0", "2") if made == "loss" else ("a", "b")
    if made == "frozen":  # and so it is for the caller
        model.get_submodule(second).requires_grad_(False)
    loss: Any = trained_norm(model) if made == "loss" else "cross_entropy"
    problem = make_problem(model, loss, (X, Y))
    dense = hessian(problem)(torch.eye(problem.size, dtype=torch.float64))
    report = eigs(problem, tol=1e-9, layers=[first])
    top = torch.linalg.eigvalsh(dense[:25, :25])[-1].item()
    assert report.layers[0].eigenvalues[0].value == pytest.approx(top, rel=1e-8)
    names = [f"{first}.weight", f"{first}.bias"]
    assert lanczos(block(problem, names), tol=1e-9).values[0].item() == pytest.approx(top, rel=1e-8)
    selected = make_problem(model, loss, (X, Y), parameters=names)
    assert lanczos(hessian(selected), tol=1e-9).values[0].item() == pytest.approx(top, rel=1e-8)
    with torch.no_grad():  # nor does it depend on what is recorded outside
        assert make_problem(model, loss, (X, Y), parameters=names).normaliser == 24
    if made != "frozen":
        weight = dense[:20, :20]
        norm2 = sum(x.square().sum().item() for n, x in model.named_parameters() if n == f"{first}.weight")
        (layer, _) = flatness(problem, tol=1e-9).layers
        assert layer.by_eigenvalue == pytest.approx(norm2 * torch.linalg.eigvalsh(weight)[-1].item(), rel=1e-7)


def test_what_is_noted_on_a_parameter_is_there() -> None:
    class Noted(Two):
        def __init__(self) -> None:
            super().__init__()
            setattr(self.a.weight, "gain", 3.0)  # noqa: B010

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.b(torch.tanh(vars(self.a.weight)["gain"] * self.a(x)))
            return logits

    model = Noted().double()
    problem = make_problem(model, "cross_entropy", (X, Y))
    assert eigs(problem, layers=["b"]).loss == pytest.approx(F.cross_entropy(model(X), Y).item(), rel=1e-12)
    assert not hasattr(model.b.weight, "gain")


def test_functions_that_hold_on_to_the_caller_s_modules_run_in_the_mode_that_is_measured() -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.bn, self.head = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
            self.block: Callable[[Tensor], Tensor] = lambda x: (
                self.bn(self.fc(x)).relu() * (1.0 if self.training else 0.5)
            )

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.block(x))
            return logits

    model = Holding().double()
    assert model.training
    problem = make_problem(model, "cross_entropy", (X, Y))
    assert model.training
    assert model.bn.training
    assert model.bn.num_batches_tracked == 0
    loss = eigs(problem, layers=[]).loss
    assert loss == pytest.approx(F.cross_entropy(model.eval()(X), Y).item(), rel=1e-12)


ASK: dict[str, Callable[[Any, Any], object]] = {
    "which": lambda p, word: eigs(p, which=word),
    "method": lambda p, word: eigs(p, method=word),
    "matrix": lambda p, word: eigs(p, matrix=word),
    "backend": lambda p, word: eigs(p, backend=word),
    "end": lambda p, word: lanczos(hessian(p), which=word),
    "norm": lambda p, word: worst_case_sharpness(p, word),
    "name": lambda p, word: curvature_matrix(p, word),
    "reduction": lambda p, word: make_problem(mlp(), "cross_entropy", (X, Y), reduction=word),
    "mode": lambda p, word: make_problem(mlp(), "cross_entropy", (X, Y), mode=word),
}


@pytest.mark.parametrize("what", ASK)
@pytest.mark.parametrize("word", ["SA", "ggn", "inf", "Sum", "Train", 3])
def test_an_unknown_word_is_named_with_those_that_are_known(what: str, word: object) -> None:
    with pytest.raises(MeasurementError, match=f"is one of .*, not {word!r}"):
        ASK[what](make_problem(mlp(), "cross_entropy", (X, Y)), word)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["0.weight", "0.bais"], "no parameter '0.bais'"),
        (["0"], "no parameter '0'"),
        ("0", "no parameter '0'"),
        (["2.weight"], r"2\.weight is none of those selected; these are 0\.weight, 0\.bias"),
        ([], "No parameter is named"),
        ([torch.zeros(3)], "by their names, not as Tensors"),
    ],
)
def test_a_block_of_what_is_no_parameter_is_refused(names: Any, said: str) -> None:
    problem = make_problem(mlp(), "cross_entropy", (X, Y), parameters=["0.weight", "0.bias"])
    with pytest.raises(MeasurementError, match=said):
        block(problem, names)


def test_a_block_answers_to_every_name_of_its_parameters() -> None:
    problem = make_problem(mlp(), "cross_entropy", (X, Y))
    assert block(problem, "0.weight").size == 20
    assert block(problem, ["module.0.weight", "_orig_mod.0.bias"]).size == 25


@pytest.mark.parametrize("model", [lambda x: x, [nn.Linear(4, 3)]])
def test_what_is_no_module_is_no_model(model: Any) -> None:
    with pytest.raises(MeasurementError, match=r"The model is a (function|list): give a torch\.nn\.Module"):
        make_problem(model, "cross_entropy", (X, Y))


def test_parameters_that_are_given_themselves_are_asked_for_by_name() -> None:
    model = mlp()
    with pytest.raises(MeasurementError, match="by their names, not as Parameters"):
        make_problem(model, "cross_entropy", (X, Y), parameters=model[0].parameters())  # type: ignore[arg-type]


class Fewer:
    """Gives fewer samples from the second pass on."""

    def __init__(self, later: int) -> None:
        self.later, self.passes = later, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        count = 24 if self.passes == 1 else self.later
        yield from ((X[i : i + 4], Y[i : i + 4]) for i in range(0, count, 4))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("later", [8, 0])
def test_data_that_give_fewer_samples_later_are_refused(later: int, reduction: Any) -> None:
    with pytest.raises(MeasurementError, match=f"gave 24 samples at first and {later} when they were read again"):
        make_problem(mlp(), "cross_entropy", Fewer(later), reduction=reduction)


def test_sequences_that_are_packed_in_order_need_not_be_joined() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.head = nn.RNN(2, 3, batch_first=True), nn.Linear(3, 3)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            logits: Tensor = self.head(self.rnn(packed)[1][0])
            return logits

    x = torch.randn(8, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lengths = torch.tensor([5, 4, 2, 1])
    batches = [((x[:4], lengths), Y[:4]), ((x[4:], lengths), Y[4:8])]
    model = Packed().double()
    problem = make_problem(model, "cross_entropy", batches)
    expected = torch.stack([F.cross_entropy(model(*inputs), y) for inputs, y in batches]).mean()
    assert eigs(problem, layers=[]).loss == pytest.approx(expected.item(), rel=1e-12)
    with pytest.raises(MeasurementError, match="cannot be run together"):
        make_problem(model, lambda z, t: F.cross_entropy(z, t), batches)


def test_inputs_whose_conjugate_is_still_to_be_taken_and_strides_of_numpy() -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.kernel, self.head = nn.Parameter(torch.randn(2, 1, 2)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            stride: Any = np.int64(2)
            waves = F.conv1d(x.real[:, None], self.kernel, stride=stride)
            logits: Tensor = self.head(waves.flatten(1))
            return logits

    model = Waves().double()
    x = torch.fft.fft(X).conj()
    loss = eigs(make_problem(model, "cross_entropy", (x, Y)), layers=[]).loss
    assert loss == pytest.approx(F.cross_entropy(model(x.resolve_conj()), Y).item(), rel=1e-12)


def test_an_operator_of_a_matrix_loses_nothing() -> None:
    assert matrix_operator(torch.eye(3)).lost == 0.0


def test_a_note_that_changes_as_the_model_runs_is_the_copy_s_and_is_said() -> None:
    class Running(Two):
        def __init__(self) -> None:
            super().__init__()
            vars(self.a.weight)["scale"] = torch.ones((), dtype=torch.float64)
            vars(self.a.weight)["seen"] = []

        def forward(self, x: Tensor) -> Tensor:
            notes = vars(self.a.weight)
            notes["seen"].append(len(x))
            notes["scale"].mul_(0.9)
            logits: Tensor = self.b(torch.tanh(notes["scale"].clone() * self.a(x)))
            return logits

    model = Running().double()
    with pytest.raises(MeasurementError, match="each time it runs"):
        make_problem(model, "cross_entropy", (X, Y))
    assert vars(model.a.weight)["scale"] == 1
    assert vars(model.a.weight)["seen"] == []


def test_inner_steps_of_a_model_are_measured_whole_and_refused_in_parts() -> None:
    class Adapting(Two):
        def forward(self, x: Tensor) -> Tensor:
            own = [p for p in self.parameters() if p.requires_grad]
            with torch.enable_grad():
                norm2 = torch.stack([p.square().sum() for p in own]).sum()
                steps = torch.autograd.grad(norm2, own, create_graph=True)
            logits: Tensor = self.b(torch.tanh(self.a(x))) + 0.01 * steps[-1]
            return logits

    problem = make_problem(Adapting().double(), "cross_entropy", (X, Y))
    assert eigs(problem, layers=[]).eigenvalues[0].converged
    with pytest.raises(MeasurementError, match="measure no layers, blocks or selections"):
        lanczos(block(problem, ["a.weight"]))


def test_a_note_that_cannot_be_copied_is_shared() -> None:
    model = mlp()
    vars(model[0].weight)["lock"] = threading.Lock()
    assert make_problem(model, "cross_entropy", (X, Y)).size == 43


class FSDPNet(nn.Linear):
    """Of a user's own, and whole."""


def test_a_class_that_is_called_alike_is_not_sharded() -> None:
    assert make_problem(FSDPNet(4, 3).double(), "cross_entropy", (X, Y)).size == 15
    sharded = type("FSDPLinear", (type("FSDPModule", (nn.Linear,), {}),), {})(4, 3)
    with pytest.raises(MeasurementError, match="sharded over processes"):
        make_problem(sharded, "cross_entropy", (X, Y))
