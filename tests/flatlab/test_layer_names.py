"""Layers whose names are those by which the network itself might be known."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatlab
from analysis.operators import curvature_matrix
from analysis.problem import make_problem
from figures.layer_densities import draw_layer_densities
from figures.layer_eigenvalues import draw_layers
from figures.layer_traces import draw_layer_traces


class WithParametersOfItsOwn(nn.Module):
    """A layer without a name, and one whose name is that of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(3))
        self.network = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((x + self.shift).tanh())
        return logits


@pytest.mark.parametrize("matrix", ["hessian", "gauss-newton", "fisher", "empirical-fisher"])
def test_a_layer_without_a_name_is_not_taken_for_the_network_nor_one_called_network(matrix: Any) -> None:
    torch.manual_seed(0)
    model, x, y = WithParametersOfItsOwn(), torch.randn(20, 3), torch.arange(20) % 2
    problem = make_problem(model, "cross_entropy", (x, y), dtype=torch.float64)
    dense = curvature_matrix(problem, matrix)(torch.eye(11, dtype=torch.float64))
    blocks = {"network": dense, "(own)": dense[:3, :3], "layer": dense[3:, 3:]}
    tops = {name: float(torch.linalg.eigvalsh(block)[-1]) for name, block in blocks.items()}
    options: Any = {"matrix": matrix, "dtype": "float64"}
    density = flatlab.density(model, "cross_entropy", (x, y), layers=True, probes=2, **options)
    eigs = flatlab.eigs(model, "cross_entropy", (x, y), tol=1e-8, **options)
    trace = flatlab.trace(model, "cross_entropy", (x, y), tol=0.01, **options)
    assert density.highest == pytest.approx(tops["network"], rel=1e-6)
    assert density.layers[""].highest == pytest.approx(tops["(own)"], rel=1e-6)
    assert density.layers["network"].highest == pytest.approx(tops["layer"], rel=1e-6)
    drawn = [row["eigenvalue"] for row in draw_layers([eigs.to_dict()]).rows]
    assert drawn == pytest.approx([tops["network"], tops["(own)"], tops["layer"]], rel=1e-6)
    traces = [row["value"] for row in draw_layer_traces([trace.to_dict()]).rows]
    assert traces == pytest.approx([float(block.trace()) for block in blocks.values()], rel=0.05)
    curves = list(draw_layer_densities([density.to_dict()]).rows)
    assert len(curves) == sum(len(one.curve.grid) for one in (density.whole, *density.layers.values()))
