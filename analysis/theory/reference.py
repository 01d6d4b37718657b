"""L and its derivatives by torch alone: nothing here runs through the code whose products are under test.

The model is called as it is, on the data as they come, cut into pieces by this module; derivatives are those of torch's
own kernels, or differences of first derivatives. From `Problem` only what was given to `make_problem` is taken.
Ranks that have shares of the data add up what each finds.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from analysis.batches import Batch, batch_length, copied, moved, sliced
from analysis.calls import call
from analysis.casts import widened
from analysis.central_difference import STEPS, Difference, central_difference
from analysis.distributed import summed, summed_number
from analysis.ieee import NoAutocast
from analysis.members import named_parameters
from analysis.model_copy import as_own
from analysis.model_state import Left
from analysis.problem import Problem
from analysis.recomputed import nothing_recomputed
from analysis.stand_ins import StandIns
from analysis.vectors import norm


@dataclass(frozen=True)
class Reference:
    """L of a problem in reduction "mean", as a function of theta (p,), its selected parameters in their order."""

    problem: Problem

    @property
    def theta(self) -> Tensor:
        """The point itself, (p,)."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.problem.parameters.values()])

    def loss(self, theta: Tensor) -> float:
        """L."""
        with torch.no_grad():
            share = sum(loss.item() for loss in self._losses(theta))
        return summed_number(share, self.problem.device, self.problem.distributed)

    def gradient(self, theta: Tensor) -> Tensor:
        """dL/dtheta (p,)."""
        leaf = theta.detach().requires_grad_()
        total = torch.zeros_like(theta)
        for loss in self._losses(leaf):
            total += torch.autograd.grad(loss, leaf, materialize_grads=True)[0]
        return self._summed(total)

    def curved(self, v: Tensor, stretch2: float) -> Difference:
        """H v (p,) by differences of gradients, between points as far apart as theta is long where v moves it.

        A gradient is rounded like J_n^T (p_n - y_n) with numbers near one; `stretch2` is mean_n |J_n|_F^2.
        """
        length = (norm(self.theta * (v != 0)) or 1.0) / norm(v)
        rounding = torch.finfo(v.dtype).eps * math.sqrt(stretch2)
        found = central_difference(self.gradient, self.theta, length * v, rounding)
        return Difference(found.value / length, found.error / length)

    def product(self, v: Tensor) -> Tensor:
        """H v (p,) by torch's second derivatives."""
        leaf = self.theta.requires_grad_()
        total = torch.zeros_like(v)
        for loss in self._losses(leaf):
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True, materialize_grads=True)
            if gradient.requires_grad:
                total += torch.autograd.grad(gradient, leaf, v, materialize_grads=True)[0]
        return self._summed(total)

    def gauss_newton_product(self, v: Tensor) -> Tensor:
        """sum_n J_n^T (d^2 loss_n / dz^2) J_n v (p,); J v by torch's second derivatives."""
        total = torch.zeros_like(v)
        for weight, batch in self._pieces():
            leaf = self.theta.requires_grad_()
            z, left = self._run(batch, leaf)
            dummy = torch.zeros_like(z, requires_grad=True)
            (pulled,) = torch.autograd.grad(z, leaf, dummy, create_graph=True, materialize_grads=True)
            (moved_z,) = torch.autograd.grad(pulled, dummy, v, materialize_grads=True)
            z_leaf = z.detach().requires_grad_()
            with self.problem.state.shown(left):
                loss = weight * self.problem.loss(z_leaf, batch[1])
            (slope,) = torch.autograd.grad(loss, z_leaf, create_graph=True)
            if slope.requires_grad:
                (curved,) = torch.autograd.grad(slope, z_leaf, moved_z, materialize_grads=True)
                total += torch.autograd.grad(z, leaf, curved, materialize_grads=True)[0]
        return self._summed(total)

    def stretch2(self, v: Tensor) -> float:
        """mean_n |J_n v|^2, by differences: its mean over random v, |v|^2 = p, is mean_n |J_n|_F^2."""
        step, total = STEPS[2], 0.0
        with torch.no_grad():
            for weight, batch in self._pieces():
                ends = [self._outputs(batch, self.theta + side * step * v) for side in (1, -1)]
                total += weight * ((ends[0] - ends[1]) / (2 * step)).square().sum().item()
        return summed_number(total, self.problem.device, self.problem.distributed)

    def _summed(self, share: Tensor) -> Tensor:
        return summed(share, self.problem.distributed)

    def _losses(self, theta: Tensor) -> Iterator[Tensor]:
        for weight, batch in self._pieces():
            outputs, left = self._run(batch, theta)
            with self._at(theta), self.problem.state.shown(left):
                loss = weight * self.problem.loss(outputs, batch[1])
            yield loss

    def _outputs(self, batch: Batch, theta: Tensor) -> Tensor:
        """The model's outputs, after a run of the loss, which may empty a list that the model fills."""
        outputs, left = self._run(batch, theta)
        with self._at(theta), self.problem.state.shown(left):
            self.problem.loss(outputs.clone(), batch[1])
        return outputs

    def _run(self, batch: Batch, theta: Tensor) -> tuple[Tensor, Sequence[Left]]:
        """The model's outputs, and what it left for the loss of these to read."""
        inputs, targets = copied(batch)
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        beside = self.problem.loss.arguments(self.problem.model, targets)
        with self.problem.state.forgotten() as left, self._at(theta) as named:
            outputs: Tensor = call(self.problem.model, named, args, {**kwargs, **beside})
        return outputs, left

    @contextmanager
    def _at(self, theta: Tensor) -> Iterator[dict[str, Tensor]]:
        """Within the block, model and loss have the parameters theta, by whatever way they reach them."""
        problem = self.problem
        parameters, own = problem.parameters, dict(named_parameters(problem.model))
        pieces: Sequence[Tensor] = theta.split([parameter.numel() for parameter in parameters.values()])
        shaped = {name: x.view(parameters[name].shape) for name, x in zip(parameters, pieces, strict=True)}
        named = {n: as_own(x, own[n]) for n, x in shaped.items()}
        table = {id(tensor): named.get(name, own[name]) for tensor, name in problem.aliases}
        # fused attention has no second derivative
        with (
            nothing_recomputed(),
            sdpa_kernel(SDPBackend.MATH),
            NoAutocast(),
            widened(problem.dtype),
            StandIns(table),
        ):
            yield named

    def _pieces(self) -> Iterator[tuple[float, Batch]]:
        """All samples, a few at a time, and the factor of their summed loss in the mean."""
        problem = self.problem
        for batch in problem.data:
            for start in range(0, batch_length(batch), problem.chunk_size):
                piece = moved(sliced(batch, start, start + problem.chunk_size), problem.device, problem.dtype)
                yield 1 / problem.samples, piece
