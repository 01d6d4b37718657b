"""The Hessian's products as PyHessian computes them, for an independent check of ours.

PyHessian 0.1 is used through this file only. As shipped it stops its iterations on the change of the eigenvalue
(results several per cent off), defaults to a GPU, fails on parameters without a gradient, leaves gradients with their
graph on the model and switches its mode. Here it gets a copy of the model in which only the parameters asked for
require a gradient and all of them have one, its gradients are removed after every use, and the iteration on top of its
product is ours, which stops on the residual.
"""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from analysis.errors import MeasurementError
from analysis.ieee import ieee
from analysis.members import named_parameters, parameters_of
from analysis.model_state import Left
from analysis.operators import SymmetricOperator
from analysis.own_losses import OwnLoss
from analysis.problem import Problem
from analysis.recording import recording
from analysis.saturation import lost_share


def pyhessian_operator(problem: Problem) -> SymmetricOperator:
    """The Hessian of `problem` as an operator whose products PyHessian makes, in the problem's chunks.

    Raises `MeasurementError` for what PyHessian cannot do: a loss summed over samples or of the model's own, several
    inputs, ranks, or complex parameters.
    """
    from pyhessian import hessian as pyhessian_hessian

    if problem.distributed:
        raise MeasurementError("The pyhessian backend runs in one process; use the flatlab backend under torchrun.")
    if problem.reduction != "mean":
        raise MeasurementError("The pyhessian backend averages over samples; use a loss with reduction 'mean'.")
    if any(parameter.is_complex() for parameter in parameters_of(problem.model)):
        raise MeasurementError("The pyhessian backend takes real parameters; use the flatlab backend for complex ones.")
    if isinstance(problem.loss.function, OwnLoss):
        raise MeasurementError("The pyhessian backend gives a model no targets; use flatlab's for a loss of its own.")
    model = _AsPyHessianCallsIt(problem)

    def criterion(outputs: Any, targets: Tensor) -> Tensor:
        nothing = sum(parameter.square().sum() for parameter in parameters_of(model) if parameter.requires_grad)
        with model.problem.at({}, model.left):  # `nothing` gives every parameter a gradient and a second derivative
            loss = problem.samples / problem.normaliser / len(targets) * problem.loss(outputs, targets)
            return loss + 0.0 * nothing

    computed = pyhessian_hessian(model, criterion, dataloader=_Batches(problem), cuda=False)
    computed.device = problem.device

    @ieee()
    @recording()
    def product(rows: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*backward.*create_graph.*")
            images = [computed.dataloader_hv_product(problem.split(row))[1] for row in rows]
        model.zero_grad()
        return torch.stack([problem.flatten([part.detach() for part in image]) for image in images])

    lost = partial(lost_share, problem)
    return SymmetricOperator(problem.size, problem.dtype, problem.device, product, lost=lost)


class _AsPyHessianCallsIt(nn.Module):
    """A copy of the problem's model, called with one tensor, whose gradients are PyHessian's to use."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem.of_a_copy()
        self.model = self.problem.model
        self.left: Sequence[Left] = ()  # by the last run, for the loss
        for name, parameter in named_parameters(self.model):
            parameter.requires_grad_(name in problem.parameters)

    def forward(self, inputs: Tensor) -> Any:
        outputs, self.left = self.problem.run(((inputs,), inputs.new_empty(0)), {})  # no loss of its own, so no targets
        return outputs


class _Batches:
    """The problem's chunks as (inputs, targets), read anew at each pass."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in self.problem.chunks():
            if isinstance(chunk.inputs, dict) or len(chunk.inputs) != 1 or not isinstance(chunk.inputs[0], Tensor):
                raise MeasurementError("The pyhessian backend takes models with one input tensor.")
            yield chunk.inputs[0], chunk.targets
