"""A chunk's graph as the matrices multiply with it: of its gradient for the Hessian, of its outputs for J^T C J."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from analysis.derivatives import ancestors, gradients
from analysis.errors import MeasurementError
from analysis.graphs import Graph
from analysis.output_curvature import Middle
from analysis.output_refusals import real_outputs
from analysis.own_losses import with_logits
from analysis.parametric_loss import Chunk
from analysis.problem import Problem
from analysis.second_derivatives import graph_only


class ProductGraph(Graph, Protocol):
    """What a matrix keeps of a chunk: its share of products and of the gradient of L."""

    def product(self, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
        """The chunk's share of A v, for v cut into pieces shaped like the parameters."""

    def gradient(self) -> Sequence[Tensor]:
        """The chunk's share of dL/dtheta."""


@dataclass(frozen=True)
class GradientGraph:
    """The chunk's gradient as a graph without values, so that it can be differentiated again."""

    total: Tensor  # the chunk's share of L
    leaves: list[Tensor]
    slopes: Sequence[GradientEdge | None]  # where dL/dtheta leaves its graph; None: it is constant

    @classmethod
    def build(cls, problem: Problem, chunk: Chunk) -> "GradientGraph":
        """Run the model on the chunk."""
        leaves = problem.leaves()
        with graph_only() as sparing:
            total = problem.chunk_loss(chunk, leaves)
        with sparing.values():
            slopes = gradients([total], list(leaves.values()), create_graph=True)
        return cls(total, list(leaves.values()), [get_gradient_edge(s) if s.requires_grad else None for s in slopes])

    @property
    def loss(self) -> float:
        """The chunk's share of L."""
        return self.total.item()

    def of(self, places: Sequence[int]) -> "GradientGraph":
        """The same for some of the parameters, by their places: of a block of the Hessian."""
        return GradientGraph(self.total, [self.leaves[at] for at in places], [self.slopes[at] for at in places])

    def product(self, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
        """The chunk's share of H v, for v cut into pieces shaped like the parameters."""
        return gradients(self.slopes, self.leaves, pieces)

    def gradient(self) -> Sequence[Tensor]:
        """The chunk's share of dL/dtheta."""
        return gradients([self.total], self.leaves)


@dataclass(frozen=True)
class OutputGraph:
    """J^T u as a function of u, whose derivative in the direction v is J v, and what stands between J^T and J."""

    loss: float
    leaves: list[Tensor]
    outputs: Tensor
    dummy: Tensor  # u, shaped like the outputs
    pulled_back: Sequence[Tensor]  # J^T u
    output_gradient: Tensor
    between: Callable[[Tensor], Tensor]  # u -> C u

    @classmethod
    def build(cls, problem: Problem, chunk: Chunk, *, middle: Middle) -> "OutputGraph":
        """Run the model on the chunk. Raises `MeasurementError` where J^T C J is not the whole of what is asked."""
        leaves = problem.leaves()
        with graph_only() as sparing:
            given, left = problem.run((chunk.inputs, chunk.targets), leaves)
        outputs = real_outputs(problem, given)
        dummy = torch.zeros_like(outputs, requires_grad=True)
        with sparing.values():
            pulled_back = gradients([outputs], list(leaves.values()), [dummy], create_graph=True)
        leaf = outputs.detach().requires_grad_()
        with problem.at(leaves, left):
            taken = with_logits(given, leaf.clone())  # a loss may change its argument in place
            loss = chunk.weight * problem.loss(taken, chunk.targets)
        if ancestors(loss) & {get_gradient_edge(own).node for own in leaves.values()}:
            raise MeasurementError(
                "The loss depends on the parameters beside the model's outputs (weight decay, say), whose curvature "
                "Gauss-Newton and Fisher matrices leave out; take the Hessian, or that term out of the loss."
            )
        (slope,) = gradients([loss], [leaf], create_graph=True)
        between = middle(chunk, leaf, slope)
        return cls(loss.item(), list(leaves.values()), outputs, dummy, pulled_back, slope, between)

    def product(self, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
        """The chunk's share of J^T C J v."""
        (forward,) = gradients(self.pulled_back, [self.dummy], pieces)
        return gradients([self.outputs], self.leaves, [self.between(forward)])

    def gradient(self) -> Sequence[Tensor]:
        """The chunk's share of dL/dtheta."""
        return gradients([self.outputs], self.leaves, [self.output_gradient.detach()])
