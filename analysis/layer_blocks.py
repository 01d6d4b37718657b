"""The diagonal blocks of the Hessian that belong to single layers, all from one gradient graph per chunk.

The loss depends on a layer's weights only through the layer's output s = W a + b, and s is linear in them. So

    H_l v = A^T ( B (A v) ),      A v: the layer run on its input with v in place of its weights,
                                  B = d^2 L / ds^2: the suffix of the network after the layer, differentiated twice,
                                  A^T u: the gradient of <s, u> with respect to the weights.

One forward and one backward pass record every layer's input, s and dL/ds; a product then touches only the suffix.
Layers for which this cannot be done (weights used elsewhere too, modules called twice or never, outputs not linear in
the weights) fall back to the Hessian of L in their parameters, with the same result.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from analysis.distributed import failing_together, summed
from analysis.errors import MeasurementError
from analysis.graphs import GraphCache
from analysis.layers import find_layers
from analysis.operators import SymmetricOperator, hessian
from analysis.problem import Problem
from analysis.suffix import Suffix, SuffixGraphs, can_be_cut


class LayerBlocks:
    """Products with the blocks of several layers at once; `products` counts them by layer."""

    def __init__(self, problem: Problem, names: Sequence[str] | None = None) -> None:
        self.layers = {layer.name: layer for layer in find_layers(problem, names)}
        self.products: Counter[str] = Counter()
        self._problem = problem
        self._blocks = {name: problem.select(layer.parameters.values()) for name, layer in self.layers.items()}
        self._cut = can_be_cut(problem, list(self.layers.values()))
        whole = [name for name in self.layers if name not in self._cut]
        share = problem.cached_samples // max(1, bool(self._cut) + len(whole))
        self._whole = {name: hessian(replace(self._blocks[name], cached_samples=share)) for name in whole}
        layers = [self.layers[name] for name in self._cut]
        self._graphs = GraphCache(
            replace(problem, cached_samples=share), lambda chunk, _: SuffixGraphs.build(problem, layers, chunk)
        )

    def __call__(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply rows (b, p_l) of any of the layers by their blocks, in one pass over the data."""
        self.products.update({name: len(row) for name, row in rows.items()})
        products = {name: self._whole[name].rows(row) for name, row in rows.items() if name in self._whole}
        totals = {name: torch.zeros_like(rows[name], dtype=torch.float64) for name in rows if name in self._cut}
        with failing_together(self._problem.device, self._problem.distributed):
            for graphs in self._graphs if totals else ():
                for name, total in totals.items():
                    block = self._blocks[name]
                    for row, sum_of_chunks in zip(rows[name], total, strict=True):
                        block.add_to(sum_of_chunks, graphs.suffixes[name].product(block.split(row)))
                del graphs  # before the next ones are built
        return products | {name: self._summed(total) for name, total in totals.items()}

    def starts(self) -> dict[str, Tensor]:
        """Start vectors (p_l, m) for every layer's block, made from dL/dW of the same graphs."""
        found = {name: operator.start() for name, operator in self._whole.items() if operator.start}
        totals = {
            name: torch.zeros(self.size(name), dtype=torch.float64, device=self._problem.device) for name in self._cut
        }
        with failing_together(self._problem.device, self._problem.distributed):
            for graphs in self._graphs if totals else ():
                for name, total in totals.items():
                    suffix = graphs.suffixes[name]
                    self._blocks[name].add_to(total, suffix.pull_back(suffix.slope.detach()))
        return found | {name: self._summed(total)[:, None] for name, total in totals.items()}

    def _summed(self, total: Tensor) -> Tensor:
        return summed(total, self._problem.distributed).to(self._problem.dtype)

    def size(self, name: str) -> int:
        """Number of parameters of a layer's block."""
        return self._blocks[name].size

    def suffixes(self, name: str) -> Iterator[Suffix]:
        """The suffix after one layer, chunk by chunk.

        Raises `MeasurementError` for a layer after which the network cannot be cut.
        """
        if name not in self._cut:
            raise MeasurementError(
                f"Layer {name!r} shares its weights or is no linear map of them, so nothing is after it alone."
            )
        return (graphs.suffixes[name] for graphs in self._graphs)

    def operator(self, name: str) -> SymmetricOperator:
        """The block of one layer as an operator."""
        problem = self._problem
        return SymmetricOperator(self.size(name), problem.dtype, problem.device, lambda rows: self({name: rows})[name])
