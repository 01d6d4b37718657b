"""The code under test broken in one way after another: each is noticed, and ends `flatlab verify` with exit code 1."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import analysis.chunk_graphs as chunk_graphs
import analysis.operators as operators
import analysis.second_derivatives as kernels
import analysis.suffix as suffix
from analysis.parametric_loss import Chunk
from analysis.problem import Problem, make_problem
from analysis.theory.differences import derivative_checks
from analysis.theory.statements import broken
from flatlab.cli.main import main
from flatlab.cli.watched_run import train_run
from flatlab.federated.config import make_config
from flatlab.federated.execution import Execution

MODEL = """
from torch import nn


def make(input_shape, classes):
    body = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, classes))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("broken")
    (folder / "net_to_break.py").write_text(MODEL)
    sys.path.insert(0, str(folder))
    fields = {"model": "net_to_break:make", "rounds": 1, "clients": 2, "local_epochs": 1, "train_samples": 100}
    yield train_run(make_config(fields), folder / "run", Execution(workers=1))
    sys.path.remove(str(folder))


def verify(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    words = ["flatlab", "verify", str(checkpoint), "--model", "net_to_break:make", "--samples", "13"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def problem() -> Problem:
    """The same network on images of noise; made while the code is whole."""
    torch.manual_seed(0)
    made: dict[str, Any] = {}
    exec(MODEL, made)
    x, y = torch.randn(13, 1, 8, 8, dtype=torch.float64), torch.arange(13) % 10
    return make_problem(made["make"]((1, 8, 8), 10).double(), "cross_entropy", (x, y))


def failing(problem: Problem) -> set[str]:
    """The statements about derivatives that fail."""
    return {c.statement for c in broken(derivative_checks(problem, operators.hessian, operators.gauss_newton))}


def scaled(function: Any, factor: float, *places: int) -> Any:
    """`function` with its result, or what stands at these places of it, times `factor`."""

    def wrong(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        if isinstance(found, Tensor):
            return factor * found
        return tuple(factor * x if i in places and x is not None else x for i, x in enumerate(found))

    return wrong


def kernel(cls: type, method: str, factor: float, *places: int) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(cls, method, staticmethod(scaled(getattr(cls, method), factor, *places)))


def first_derivative_of_relu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kernels._ReLU, "backward", staticmethod(scaled(kernels._ReLU.backward, 0.9)))


def off_diagonal_blocks_lost(patch: pytest.MonkeyPatch) -> None:
    right = chunk_graphs.GradientGraph.product

    def product(graph: Any, pieces: Any) -> Any:
        alone = [[x if i == k else torch.zeros_like(x) for i, x in enumerate(pieces)] for k in range(len(pieces))]
        return [right(graph, one)[k] for k, one in enumerate(alone)]

    patch.setattr(chunk_graphs.GradientGraph, "product", product)


def chunks_but_the_last(problem: Problem) -> Iterator[Chunk]:
    chunks = list(CHUNKS(problem))
    yield from chunks[: max(1, len(chunks) - 1)]


def chunks_of_equal_weight(problem: Problem) -> Iterator[Chunk]:
    chunks = list(CHUNKS(problem))
    return (replace(chunk, weight=1 / len(chunks) / len(chunk.targets)) for chunk in chunks)


CHUNKS = Problem.chunks

BREAKAGES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "ReLU's second derivative x 1.1": kernel(kernels._Masked, "backward", 1.1, 0),
    "ReLU's first derivative x 0.9": first_derivative_of_relu,
    "max-pooling's second derivative x 0.9": kernel(kernels._PutBack, "backward", 0.9, 0),
    "max-pooling's first derivative x 0.9": kernel(kernels._MaxPool, "backward", 0.9, 0),
    "a convolution's term by the gradient lost": kernel(kernels._Gradients, "backward", 0.0, 0),
    "a convolution's term by the input lost": kernel(kernels._Gradients, "backward", 0.0, 1),
    "a convolution's term by the weight lost": kernel(kernels._Gradients, "backward", 0.0, 2),
    "a convolution's first derivative in its weight lost": kernel(kernels._Convolution, "backward", 0.0, 1),
    "a convolution's value x 1.01": kernel(kernels._Convolution, "forward", 1.01),
    "off-diagonal blocks lost": off_diagonal_blocks_lost,
    "Gauss-Newton in place of H": lambda patch: patch.setattr(operators, "hessian", operators.gauss_newton),
    "H in place of Gauss-Newton": lambda patch: patch.setattr(operators, "gauss_newton", operators.hessian),
    "H x (1 + 1e-5)": lambda patch: patch.setattr(
        chunk_graphs.GradientGraph, "product", scaled_pieces(chunk_graphs.GradientGraph.product, 1 + 1e-5)
    ),
    "Gauss-Newton x 1.1": lambda patch: patch.setattr(
        chunk_graphs.OutputGraph, "product", scaled_pieces(chunk_graphs.OutputGraph.product, 1.1)
    ),
    "products in float32": lambda patch: patch.setattr(
        chunk_graphs.GradientGraph, "product", in_float32(chunk_graphs.GradientGraph.product)
    ),
    "a lost last chunk": lambda patch: patch.setattr(Problem, "chunks", chunks_but_the_last),
    "a mean of the chunks' means": lambda patch: patch.setattr(Problem, "chunks", chunks_of_equal_weight),
    "curvature behind a layer x 1.01": lambda patch: patch.setattr(
        suffix.Suffix, "curve", scaled(suffix.Suffix.curve, 1.01)
    ),
    "a layer's bias does not move": lambda patch: patch.setattr(
        suffix.Suffix, "push_forward", without_bias(suffix.Suffix.push_forward)
    ),
}


def scaled_pieces(function: Any, factor: float) -> Any:
    return lambda *args: [factor * piece for piece in function(*args)]


def in_float32(function: Any) -> Any:
    return lambda *args: [piece.float().double() for piece in function(*args)]


def without_bias(function: Any) -> Any:
    return lambda self, pieces: function(self, [x if x.dim() > 1 else torch.zeros_like(x) for x in pieces])


def test_what_is_whole_passes(problem: Problem) -> None:
    assert not failing(problem)


@pytest.mark.parametrize("name", BREAKAGES)
def test_what_is_broken_is_noticed(name: str, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    BREAKAGES[name](monkeypatch)
    assert failing(problem)


def test_the_command_passes_what_is_whole(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify(checkpoint, monkeypatch) == 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("H x (1 + 1e-5)", "Statement D must hold"),
        ("a convolution's term by the weight lost", "The Hessian's products are not symmetric"),
    ],
)
def test_the_command_ends_with_exit_code_1(
    name: str, sentence: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    BREAKAGES[name](monkeypatch)
    assert verify(checkpoint, monkeypatch) == 1
    assert sentence in capsys.readouterr().err
