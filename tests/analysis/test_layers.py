"""The blocks of single layers: the cut after a layer gives what the dense Hessian has there."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.errors import MeasurementError
from analysis.layer_blocks import LayerBlocks
from analysis.layers import find_groups, find_layers
from analysis.problem import Problem, make_problem
from analysis.spectrum import eigs


def positions(problem: Problem, names: Mapping[str, str]) -> list[int]:
    """Where a layer's parameters lie in the whole vector."""
    at, found = 0, []
    for name, parameter in problem.parameters.items():
        found += list(range(at, at + parameter.numel())) if name in names.values() else []
        at += parameter.numel()
    return found


def dense_block(blocks: LayerBlocks, name: str) -> Tensor:
    return blocks({name: torch.eye(blocks.size(name), dtype=torch.float64)})[name]


@given(
    architecture=st.sampled_from(["mlp", "cnn", "residual", "attention", "tied"]),
    phi=st.sampled_from(["relu", "tanh", "gelu"]),
    loss=st.sampled_from(["cross_entropy", "squared", "smoothed"]),
    reduction=st.sampled_from(["mean", "sum"]),
    memory=st.sampled_from([1, 1 << 30]),
)
@settings(max_examples=12, deadline=None)
def test_every_block_is_the_dense_one(make_case: Any, dense_hessian: Any, memory: int, **case_of: Any) -> None:
    case = make_case(**case_of)
    problem = case.problem(chunk_size=4, memory=memory)
    exact = dense_hessian(case)
    blocks = LayerBlocks(problem)
    for name, layer in blocks.layers.items():
        where = positions(problem, layer.parameters)
        torch.testing.assert_close(dense_block(blocks, name), exact[where][:, where], rtol=0, atol=1e-11)
    assert sum(blocks.size(name) for name in blocks.layers) == problem.size


def test_a_wrong_block_would_be_seen(make_case: Any, dense_hessian: Any) -> None:
    """Another layer's rows and columns of the same size are far from the block."""
    case = make_case("tied", phi="tanh")
    problem = case.problem()
    blocks = LayerBlocks(problem)
    exact = dense_hessian(case)
    where = positions(problem, blocks.layers["inner"].parameters)
    shifted = [i + 1 for i in where]
    assert (dense_block(blocks, "inner") - exact[shifted][:, shifted]).abs().max() > 1e-3


def test_layers_and_their_names(make_case: Any) -> None:
    blocks = LayerBlocks(make_case("residual").problem())
    assert list(blocks.layers) == ["first", "norm", "second", "head"]
    assert set(blocks.layers["norm"].parameters) == {"weight", "bias"}
    assert list(LayerBlocks(make_case("residual").problem(), ["head", "norm"]).layers) == ["norm", "head"]
    with pytest.raises(MeasurementError, match=r"no layer 'phi'.*first, norm, second, head"):
        LayerBlocks(make_case("residual").problem(), ["phi"])


def test_a_tied_weight_belongs_to_its_first_layer_and_cannot_be_cut(make_case: Any) -> None:
    blocks = LayerBlocks(make_case("tied").problem())
    assert blocks.layers["inner"].parameters == {"weight": "inner.weight", "bias": "inner.bias"}
    assert blocks.layers["back"].parameters == {"bias": "back.bias"}
    for name in ("inner", "enter"):  # a weight used by two modules, and one used outside its module
        with pytest.raises(MeasurementError, match="shares its weights"):
            blocks.suffixes(name)
    assert next(blocks.suffixes("head")).outputs.shape == (7, 3)


class Awkward(nn.Module):
    """A layer that runs twice, one overwritten in place, one with a frozen bias, one behind a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.overwritten, self.partly = nn.Linear(16, 16), nn.Linear(16, 4), nn.Linear(4, 4)
        self.hooked, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.partly.bias.requires_grad_(False)
        self.hooked.register_forward_hook(lambda module, args, output: output * module.weight.sum())

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.tanh(self.twice(x.flatten(1))))
        x = self.overwritten(x)
        x = F.relu(x.add_(1.0))
        logits: Tensor = self.head(torch.tanh(self.hooked(torch.tanh(self.partly(x)))))
        return logits


def test_what_cannot_be_cut_falls_back_to_the_same_block() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    problem = make_problem(Awkward(), "cross_entropy", (x, y), dtype=torch.float64, chunk_size=2)
    blocks = LayerBlocks(problem)
    names = list(problem.parameters)

    def loss(*pieces: Tensor) -> Tensor:
        return F.cross_entropy(problem.outputs(((x.double(),), y), dict(zip(names, pieces, strict=True))), y)

    parts: Any = torch.autograd.functional.hessian(loss, tuple(problem.parameters.values()))
    for name, layer in blocks.layers.items():
        own = [names.index(full) for full in layer.parameters.values()]
        sizes = [problem.parameters[names[i]].numel() for i in own]
        rows = [torch.cat([parts[i][j].reshape(n, -1) for j in own], 1) for i, n in zip(own, sizes, strict=True)]
        torch.testing.assert_close(dense_block(blocks, name), torch.cat(rows), rtol=0, atol=1e-12)
    for name in ("partly", "head"):
        assert list(blocks.suffixes(name))
    for name in ("twice", "overwritten", "hooked"):
        with pytest.raises(MeasurementError):
            blocks.suffixes(name)


def test_relu_blocks_are_positive_semidefinite(make_case: Any) -> None:
    blocks = LayerBlocks(make_case("cnn").problem())
    for name in blocks.layers:
        assert torch.linalg.eigvalsh(dense_block(blocks, name))[0] > -1e-12


def test_products_are_counted_and_the_operator_is_the_block(make_case: Any) -> None:
    blocks = LayerBlocks(make_case("mlp").problem())
    operator = blocks.operator("3")
    torch.testing.assert_close(operator(torch.eye(operator.size, dtype=torch.float64)), dense_block(blocks, "3"))
    assert blocks.products == {"3": 2 * operator.size}
    assert operator.exact is None  # it is in float64 itself


def test_a_block_in_float32_has_its_product_in_float64(make_case: Any) -> None:
    exact = LayerBlocks(make_case("mlp").problem())
    operator = LayerBlocks(make_case("mlp").problem(dtype=torch.float32)).operator("3")
    assert operator.exact is not None
    rows = torch.eye(operator.size)
    torch.testing.assert_close(operator.exact(rows), dense_block(exact, "3"), rtol=1e-5, atol=1e-6)
    assert operator.exact(rows).dtype == torch.float64
    off = (operator(rows).double() - operator.exact(rows)).norm() / operator.exact(rows).norm()
    assert 1e-9 < off < 1e-5


class Body(nn.Module):
    """Two blocks in a list between an entrance and an exit."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 3)
        self.h = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Tanh()) for _ in range(2))
        self.leave = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(1))
        for block in self.h:
            x = x + block(x)
        z: Tensor = self.leave(x)
        return z


@pytest.mark.parametrize("memory", [1, 1 << 30])
@pytest.mark.parametrize("by", ["block", "h", "h.*.0", "h.1,*"])
def test_a_group_is_the_diagonal_block_of_all_its_parameters(
    make_case: Any, dense_hessian: Any, by: str, memory: int
) -> None:
    torch.manual_seed(0)
    case = replace(make_case("mlp"), model=Body())
    exact = dense_hessian(case)
    problem = case.problem(chunk_size=3, memory=memory)
    blocks = LayerBlocks(problem, group_by=by)
    for name, group in blocks.groups.items():
        where = positions(problem, {full: full for full in group.parameters})
        assert len(where) == blocks.size(name)
        torch.testing.assert_close(dense_block(blocks, name), exact[where][:, where], rtol=0, atol=1e-11)
    assert sum(blocks.size(name) for name in blocks.groups) == problem.size


def test_the_top_of_a_group(make_case: Any, dense_hessian: Any) -> None:
    """Above that of each of its layers, and of the dense block."""
    torch.manual_seed(0)
    case = replace(make_case("mlp"), model=Body())
    exact = dense_hessian(case)
    problem = case.problem()
    single = {layer.name: layer.eigenvalues[0].value for layer in eigs(problem).layers}
    groups = find_groups(problem, by="block")
    report = eigs(problem, 2, tol=1e-6, group_by="block")
    assert [layer.name for layer in report.layers] == [group.name for group in groups]
    for layer, group in zip(report.layers, groups, strict=True):
        where = positions(problem, {full: full for full in group.parameters})
        tops = torch.linalg.eigvalsh(exact[where][:, where]).flip(0)[:2].tolist()
        assert [pair.value for pair in layer.eigenvalues] == pytest.approx(tops, rel=1e-5, abs=1e-9)
        assert tops[0] >= (1 - 2e-3) * max(single[member.name] for member in group.layers)


@pytest.mark.parametrize(
    ("by", "names"),
    [
        (None, ["enter", "h.0.0", "h.0.1", "h.1.0", "h.1.1", "leave"]),
        ("block", ["enter", "h.0", "h.1", "leave"]),
        ("h.*", ["enter", "h.0", "h.1", "leave"]),
        ("h", ["enter", "h", "leave"]),
        ("h.1", ["enter", "h.0.0", "h.0.1", "h.1", "leave"]),
        ("e*,h", ["enter", "h", "leave"]),
        ("[0-9]", ["enter", "h.0", "h.1", "leave"]),
        ("h.*.0,h.*", ["enter", "h.0.0", "h.0 (rest)", "h.1.0", "h.1 (rest)", "leave"]),
        ("h.0,h", ["enter", "h.0", "h (rest)", "leave"]),
    ],
)
def test_names_of_groups(by: str | None, names: list[str]) -> None:
    problem = make_problem(Body(), "cross_entropy", (torch.randn(5, 16), torch.arange(5) % 3))
    assert [group.name for group in find_groups(problem, by=by)] == names


def test_a_pattern_begins_with_the_name_where_it_can() -> None:
    """`0` is the first of these layers, and not also the first within the last."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    problem = make_problem(model, "cross_entropy", (torch.randn(5, 3), torch.arange(5) % 2))
    for by, names in (
        ("0,2", ["0", "2"]),
        ("2", ["0", "2"]),
        ("2.0,2", ["0", "2.0", "2 (rest)"]),
        ("?.2", ["0", "2.0", "2.2"]),
    ):
        groups = find_groups(problem, by=by)
        assert [group.name for group in groups] == names


def test_groups_that_are_none() -> None:
    problem = make_problem(Body(), "cross_entropy", (torch.randn(5, 16), torch.arange(5) % 3))
    with pytest.raises(MeasurementError, match=r"No layer fits the pattern 'layers.\*'; the layers are enter, h.0.0"):
        find_groups(problem, by="h.*,layers.*")
    with pytest.raises(MeasurementError, match=r"All that fits the pattern 'h.0' fits one before it"):
        find_groups(problem, by="h,h.0")
    with pytest.raises(MeasurementError, match="No layer has a number in its name"):
        find_groups(problem, ["enter", "leave"], "block")


def test_a_layer_without_numbers_is_none() -> None:
    """An optional part that is switched off, such as an adapter of rank 0."""

    class Adapted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.adapter = nn.Linear(3, 0, bias=False)

    torch.manual_seed(0)
    problem = make_problem(Adapted(), "cross_entropy", (torch.randn(5, 3), torch.arange(5) % 2))
    assert [layer.name for layer in find_layers(problem)] == [""]
    assert [layer.name for layer in eigs(problem).layers] == [""]
