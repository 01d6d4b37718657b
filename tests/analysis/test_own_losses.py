"""Losses that a model returns itself, losses of tokens, and outputs that are no tensor, against dense Hessians."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from analysis.errors import MeasurementError
from analysis.flatness import flatness
from analysis.operators import gauss_newton, hessian
from analysis.problem import Problem, make_problem
from analysis.pyhessian_backend import pyhessian_operator
from analysis.spectrum import eigs
from analysis.subsets import batch_spectra
from analysis.theory.chain import chain

SYMBOLS = 5


@dataclass
class Said:
    """Outputs that are an object."""

    loss: Tensor | None
    logits: Tensor


class Language(nn.Module):
    """A causal network in miniature: each token is predicted from the mean of those up to the one before."""

    def __init__(self, shape: str = "mapping") -> None:
        super().__init__()
        self.table = nn.Embedding(SYMBOLS, 3)
        self.head = nn.Linear(3, SYMBOLS)
        self.shape = shape

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = mask[..., None].to(self.head.weight)
        logits = self.head(torch.tanh((self.table(input_ids) * mask).cumsum(1) / mask.cumsum(1).clamp(min=1)))
        loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        if self.shape == "tuple":
            return (logits,) if loss is None else (logits, loss)
        return {"loss": loss, "logits": logits} if self.shape == "mapping" else Said(loss, logits)


def tokens(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    """Padded sequences as a tokenizer and its collator give them."""
    ids = torch.randint(SYMBOLS, (len(lengths), 6), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}


def dense(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The Hessian of the loss that the model returns for everything in one batch."""
    named = dict(model.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def loss(theta: Tensor) -> Tensor:
        pieces = {n: t.view_as(p) for (n, p), t in zip(named.items(), theta.split(sizes), strict=True)}
        outputs = functional_call(model, pieces, (), batch)
        found: Tensor = outputs["loss"] if isinstance(outputs, dict) else outputs[-1]
        return found

    theta = torch.cat([p.detach().reshape(-1) for p in named.values()])
    exact: Tensor = torch.autograd.functional.hessian(loss, theta)
    return exact


def matrix(problem: Problem) -> Tensor:
    return hessian(problem)(torch.eye(problem.size, dtype=torch.float64))


def cut(batch: dict[str, Tensor], sizes: list[int]) -> list[dict[str, Tensor]]:
    pieces = {name: value.split(sizes) for name, value in batch.items()}
    return [{name: values[i] for name, values in pieces.items()} for i in range(len(sizes))]


@settings(max_examples=15)
@given(st.lists(st.integers(2, 6), min_size=4, max_size=6), st.sampled_from(["mapping", "object", "tuple"]), st.data())
def test_a_language_model_with_padding(lengths: list[int], shape: str, data: st.DataObject) -> None:
    """The loss of all data at once, however they are cut, by the model's own loss and by the one of that name here."""
    torch.manual_seed(1)
    model = Language(shape).double()
    batch = tokens(lengths)
    first = data.draw(st.integers(1, len(lengths) - 1))
    pieces = cut(batch, [first, len(lengths) - first])
    reference = Language("mapping").double()
    reference.load_state_dict(model.state_dict())
    exact = dense(reference, batch)
    for loss in ("own_per_next_label", "next_token") if shape != "tuple" else ("own_per_next_label",):
        torch.testing.assert_close(matrix(make_problem(model, loss, pieces)), exact)


def test_labels_that_are_all_padding() -> None:
    batch = tokens([4, 6, 3])
    batch["labels"][2] = -100
    model = Language().double()
    problem = make_problem(model, "own_per_next_label", cut(batch, [2, 1]), chunk_size=1)
    torch.testing.assert_close(matrix(problem), dense(model, batch))


@pytest.mark.parametrize("sizes", [[9], [5, 4], [4, 5], [1] * 9])
def test_padding_comes_first(sizes: list[int]) -> None:
    """The first few samples, and whole batches, may hold no label."""
    model = Classifier().double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    y[:5] = -100
    exact = matrix(make_problem(model, "own_per_label", (x[5:], y[5:])))
    for loss in ("own_per_label", "cross_entropy"):
        problem = make_problem(model, loss, list(zip(x.split(sizes), y.split(sizes), strict=True)))
        torch.testing.assert_close(matrix(problem), exact)
        with pytest.raises(MeasurementError, match="over 5 samples is 0: none of the targets count"):
            make_problem(model, loss, (x[:5], y[:5]))


def test_a_mini_batch_of_padding_is_left_out() -> None:
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    y[4:8] = -100
    model = Classifier().double()
    problem = make_problem(model, "cross_entropy", (x, y))
    with pytest.warns(UserWarning, match="batches 2 of 3"):
        spectra = batch_spectra(problem, 4)
    tops = [torch.linalg.eigvalsh(matrix(problem.on((x[i : i + 4], y[i : i + 4]))))[-1] for i in (0, 8)]
    torch.testing.assert_close(spectra.values[:, 0], torch.stack(tops))


@pytest.mark.parametrize("loss", ["own_per_label", "own_per_sample"])
def test_a_mean_over_something_else_is_refused(loss: str) -> None:
    with pytest.raises(MeasurementError, match="the mean that the model returns is over something else than"):
        make_problem(Language().double(), loss, tokens([2, 6, 3, 5]))


class Classifier(nn.Module):
    """Takes its targets by the other name, and returns a scalar in their presence."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        z: Tensor = self.head(x)
        return z if targets is None else F.cross_entropy(z, targets)


def test_targets_under_another_name_and_inputs_by_position() -> None:
    model = Classifier().double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    expected = matrix(make_problem(model, "cross_entropy", (x, y)))
    torch.testing.assert_close(
        matrix(make_problem(model, "own_per_sample", [(x[:2], y[:2]), (x[2:], y[2:])])), expected
    )


class Silent(Classifier):
    """Takes targets and returns no loss for them."""

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
        return {"logits": self.head(x)}


@pytest.mark.parametrize(
    ("model", "reason"),
    [(nn.Linear(4, 3), "takes no argument called labels or targets"), (Silent(), "without one scalar loss")],
)
def test_models_without_a_loss(model: nn.Module, reason: str) -> None:
    with pytest.raises(MeasurementError, match=reason):
        make_problem(model, "own_per_sample", (torch.randn(2, 4), torch.zeros(2).long()))


def test_tokens_moved_too_little_or_too_much_are_refused() -> None:
    """What would be a small loss of copying, or of the token after the next, is no number but a sentence."""
    batch = tokens([6, 4, 6])
    model = Language()
    for loss in ("cross_entropy", nn.CrossEntropyLoss()):
        with pytest.raises(MeasurementError, match="name the loss next_token"):
            make_problem(model, loss, batch)
    moved = {**batch, "labels": F.pad(batch["labels"][:, 1:], (0, 1), value=-100)}
    make_problem(model, "cross_entropy", moved)
    with pytest.raises(MeasurementError, match="moved by one already"):
        make_problem(model, "next_token", moved)


def test_next_token_wants_tokens() -> None:
    with pytest.raises(MeasurementError, match=r"needs targets \(N, T\)"):
        make_problem(nn.Linear(4, 3), "next_token", (torch.randn(2, 4), torch.zeros(2).long()))


@pytest.mark.parametrize("name", ["labels", "label", "targets", "target"])
def test_names_of_targets_in_a_batch(name: str) -> None:
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    model = Classifier().double()
    expected = matrix(make_problem(model, "cross_entropy", (x, y)))
    torch.testing.assert_close(matrix(make_problem(model, "cross_entropy", {"x": x, name: y})), expected)


def test_a_loader_that_shuffles_is_read_once() -> None:
    """Also where graphs of some of the samples alone are kept, and where it draws other samples each time."""
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 3
    model = Classifier().double()
    expected = matrix(make_problem(model, "cross_entropy", (x, y)))
    loader = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True)
    problem = make_problem(model, "cross_entropy", loader, chunk_size=4)
    object.__setattr__(problem, "cached_samples", 11)
    torch.testing.assert_close(matrix(problem), expected)
    dropping = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True, drop_last=True)
    assert make_problem(model, "cross_entropy", dropping).samples == 28


def test_a_loader_that_shuffles_too_much_to_keep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.batches._KEPT_AT_MOST", 100)
    loader = DataLoader(TensorDataset(torch.randn(30, 4), torch.arange(30) % 3), batch_size=7, shuffle=True)
    with pytest.raises(MeasurementError, match="make it with shuffle=False"):
        make_problem(Classifier(), "cross_entropy", loader)


class Regression(nn.Module):
    """It cannot run without its targets; its outputs lie far apart, and are no sure predictions for that."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = 100 * self.head(self.layer(x).tanh())
        return {"loss": (logits - labels).square().mean(), "logits": logits}


def test_every_measure_of_a_model_that_cannot_run_without_its_targets() -> None:
    torch.manual_seed(0)
    model, x, y = Regression().double(), torch.randn(9, 2).double(), torch.randn(9, 3).double()
    problem = make_problem(model, "own_per_sample", (x, y), chunk_size=4)
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def loss(theta: Tensor) -> Tensor:
        pieces = zip(parameters.items(), theta.split(sizes), strict=True)
        out = functional_call(model, {name: piece.view_as(p) for (name, p), piece in pieces}, (x, y))
        return F.mse_loss(out["logits"], y)

    exact: Any = torch.autograd.functional.hessian(loss, torch.cat([p.detach().flatten() for p in parameters.values()]))
    report = eigs(problem, which="both")
    ends = torch.linalg.eigvalsh(exact)[[-1, 0]].tolist()
    assert [value.value for value in report.eigenvalues] == pytest.approx(ends, rel=1e-4)
    assert all(value.converged for value in report.eigenvalues)
    tops = [float(torch.linalg.eigvalsh(block)[-1]) for block in (exact[:9, :9], exact[9:, 9:])]
    assert [layer.eigenvalues[0].value for layer in report.layers] == pytest.approx(tops, rel=1e-4)
    assert flatness(problem).trace.value == pytest.approx(float(exact.trace()), rel=0.2)
    assert batch_spectra(problem, 3).converged.all()
    with pytest.raises(MeasurementError, match="gives a model no targets"):
        pyhessian_operator(problem)
    with pytest.raises(MeasurementError):
        gauss_newton(problem)(torch.ones(21, dtype=torch.float64))
    with pytest.raises(MeasurementError, match="one tensor of real numbers; this one's is dict"):
        chain(problem)
