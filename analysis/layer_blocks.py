"""The diagonal blocks of the Hessian that belong to single layers or groups of them, from one or two graphs per chunk.

The loss depends on a layer's weights only through the layer's output s = W a + b, and s is linear in them. So

    H_l v = A^T ( B (A v) ),      A v: the layer run on its input with v in place of its weights,
                                  B = d^2 L / ds^2: the suffix of the network after the layer, differentiated twice,
                                  A^T u: the gradient of <s, u> with respect to the weights.

One forward and one backward pass record every layer's input, s and dL/ds; a product then touches only the suffix.
Layers for which this cannot be done (weights used elsewhere too, modules called twice or never, outputs not linear in
the weights), and groups of several layers, take the gradient of L in all their parameters, of which a product
differentiates what belongs to the block, with the same result.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

from analysis.chunk_graphs import GradientGraph
from analysis.confirmation import in_float64
from analysis.distributed import summed
from analysis.errors import MeasurementError
from analysis.graphs import GraphCache
from analysis.ieee import ieee
from analysis.layers import find_groups
from analysis.objective import loss_and_gradient
from analysis.operators import SymmetricOperator
from analysis.problem import Problem
from analysis.saturation import lost_share
from analysis.suffix import Suffix, SuffixGraphs, can_be_cut


class LayerBlocks:
    """Products with the blocks of several layers, or groups of them, at once; `products` counts them by name."""

    def __init__(self, problem: Problem, names: Sequence[str] | None = None, group_by: str | None = None) -> None:
        self.groups = {group.name: group for group in find_groups(problem, names, group_by)}
        alone = {name: group.layers[0] for name, group in self.groups.items() if len(group.layers) == 1}
        self.layers = {name: replace(layer, name=name) for name, layer in alone.items()}
        self.products: Counter[str] = Counter()
        self._problem, self._chosen = problem, (names, group_by)
        self._blocks = {name: problem.select(group.parameters) for name, group in self.groups.items()}
        self._cut = can_be_cut(problem, list(self.layers.values()))
        self._whole = problem.select(
            full for name, group in self.groups.items() if name not in self._cut for full in group.parameters
        )
        share = problem.cached_samples // max(1, bool(self._cut) + bool(self._whole.parameters))
        layers = [self.layers[name] for name in self._cut]
        self._suffixes = GraphCache(
            replace(problem, cached_samples=share), lambda chunk: SuffixGraphs.build(problem, layers, chunk)
        )
        self._gradients = GraphCache(
            replace(self._whole, cached_samples=share),
            lambda chunk: GradientGraph.build(self._whole, chunk),
        )

    @ieee()
    def __call__(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply rows (b, p_l) of any of the layers, of any precision, by their blocks, in one pass over the data."""
        self.products.update({name: len(row) for name, row in rows.items()})
        with self._problem.passing():
            totals = {name: torch.zeros_like(row, dtype=torch.float64) for name, row in rows.items()}
            for graphs in self._suffixes if any(name in self._cut for name in rows) else ():
                for name in self._cut:
                    if name in rows:
                        self._add(name, rows[name], totals[name], graphs.suffixes[name].product)
                del graphs  # before the next ones are built
            for graph in self._gradients if any(name not in self._cut for name in rows) else ():
                for name, row in rows.items():
                    if name not in self._cut:
                        self._add(name, row, totals[name], graph.of(self._places(name)).product)
                del graph
        return {name: self._summed(total) for name, total in totals.items()}

    def _add(
        self, name: str, rows: Tensor, totals: Tensor, product: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    ) -> None:
        """Add the block's product with each row, as this chunk has it, to the totals."""
        block = self._blocks[name]
        for row, total in zip(rows, totals, strict=True):
            block.add_to(total, product(block.split(row.to(self._problem.dtype))))

    def _places(self, name: str) -> list[int]:
        """Where the block's parameters are among those of the gradients."""
        order = {full: place for place, full in enumerate(self._whole.parameters)}
        return [order[full] for full in self._blocks[name].parameters]

    def starts(self) -> dict[str, Tensor]:
        """Start vectors (p_l, m) for every layer's block, made from dL/dW of the same graphs."""
        return {name: start[:, None] for name, start in {**self._whole_starts(), **self._cut_starts()}.items()}

    def _cut_starts(self) -> dict[str, Tensor]:
        sizes = {name: self.size(name) for name in self._cut}
        with self._problem.passing():
            totals = {n: torch.zeros(p, dtype=torch.float64, device=self._problem.device) for n, p in sizes.items()}
            for graphs in self._suffixes if totals else ():
                for name, total in totals.items():
                    suffix = graphs.suffixes[name]
                    self._blocks[name].add_to(total, suffix.pull_back(suffix.slope.detach()))
        return {name: self._summed(total) for name, total in totals.items()}

    def _whole_starts(self) -> dict[str, Tensor]:
        names = [name for name in self.groups if name not in self._cut]
        if not names:
            return {}
        pieces = self._whole.split(loss_and_gradient(self._whole)[1])
        return {name: self._blocks[name].flatten([pieces[at] for at in self._places(name)]) for name in names}

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
        return (graphs.suffixes[name] for graphs in self._suffixes)

    def operator(self, name: str) -> SymmetricOperator:
        """The block of one layer as an operator."""
        problem = self._problem

        def product(rows: Tensor) -> Tensor:
            return self({name: rows})[name]

        def exact(rows: Tensor) -> Tensor:
            return self._in_float64({name: rows})[name]

        in_double = exact if problem.dtype != torch.float64 else None
        return SymmetricOperator(
            self.size(name), problem.dtype, problem.device, product, exact=in_double, lost=partial(lost_share, problem)
        )

    @cached_property
    def _in_float64(self) -> "LayerBlocks":
        """Made when it is asked for: finding out how to cut the network runs it."""
        return LayerBlocks(in_float64(self._problem), *self._chosen)
