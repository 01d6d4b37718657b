"""Models and losses of which Gauss-Newton and empirical Fisher matrices say nothing, found before the first product."""

import torch
from torch import Tensor

from analysis.batches import Batch, batch_length, moved, picked
from analysis.derivatives import gradients
from analysis.distributed import summed_number
from analysis.errors import MeasurementError
from analysis.own_losses import OwnLoss, with_logits
from analysis.parametric_loss import Chunk
from analysis.problem import Problem


def real_outputs(problem: Problem, given: object) -> Tensor:
    """The tensor z of what the model has `given` of which the loss is a function; raises `MeasurementError` if none."""
    if isinstance(problem.loss.function, OwnLoss):
        raise MeasurementError(
            f"Gauss-Newton and Fisher matrices need a loss of the model's outputs, and {problem.loss.name} is computed "
            "within the model: name a loss of its logits, such as cross_entropy or next_token, or take the Hessian."
        )
    z = problem.loss.taken(given)
    if isinstance(z, Tensor) and not z.is_complex():
        return z
    found = "complex numbers" if isinstance(z, Tensor) else type(z).__name__
    raise MeasurementError(
        "Gauss-Newton and Fisher matrices need a model whose output is one tensor of real numbers, or has such logits "
        f"in it and a loss by name; this one's is {found}."
    )


def refuse_flat(problem: Problem) -> None:
    """Raise `MeasurementError` for a loss that is linear, or piecewise linear, in the outputs: its matrix is zero.

    The data are gone through until some of them show a curvature: the first targets may all be padding.
    """
    with problem.passing():
        curved = any(_is_curved(problem, chunk) for chunk in problem.chunks())
    if not summed_number(curved, problem.device, problem.distributed):
        raise MeasurementError(
            "The loss is linear in the model's outputs, so its Gauss-Newton matrix is zero: let the model return "
            "logits and take cross_entropy of them, or take the Hessian."
        )


def _is_curved(problem: Problem, chunk: Chunk) -> bool:
    """Whether the loss has a second derivative in the outputs, there or elsewhere: a saturated one has none there."""
    for there in (False, True):
        with torch.no_grad():
            given, left = problem.run((chunk.inputs, chunk.targets), {})
        outputs = real_outputs(problem, given)
        generator = torch.Generator().manual_seed(0)
        # between 0.1 and 0.9 losses of logits, of probabilities and of numbers are defined, and none saturates
        place, direction = torch.rand(2, *outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
        leaf = (outputs if there else 0.1 + 0.8 * place).detach().requires_grad_()
        with problem.at({}, left):
            total = problem.loss(with_logits(given, leaf.clone()), chunk.targets)
        (slope,) = gradients([total], [leaf], create_graph=True)
        if gradients([slope], [leaf], [direction])[0].any():
            return True
    return False


def require_rows(problem: Problem) -> None:
    """Raise `MeasurementError` where the outputs that the loss takes are not one tensor with a row for each sample."""
    with problem.passing():
        for count in (2, 3):
            z = real_outputs(problem, _outputs(problem, _samples(problem, count)))
            if z.dim() == 0 or len(z) != count:
                raise MeasurementError(
                    f"The empirical Fisher matrix needs outputs with a row for each sample; those of {count} samples "
                    f"are {tuple(z.shape)}: let the model put the samples first."
                )


def require_tensor(problem: Problem) -> None:
    """Raise `MeasurementError` where the outputs are not one tensor of real numbers."""
    with problem.passing():
        outputs = _outputs(problem, _samples(problem, 1))
        if not isinstance(outputs, Tensor) or outputs.is_complex():
            found = "complex numbers" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise MeasurementError(
                f"The statements speak of a model whose output is one tensor of real numbers; this one's is {found}: "
                "wrap it in a module that returns its logits."
            )


def _first(problem: Problem) -> Batch:
    return next(batch for batch in problem.data if batch_length(batch))


def _samples(problem: Problem, count: int) -> Batch:
    """`count` samples, the first of the data again and again where they are fewer."""
    batch = _first(problem)
    return moved(picked(batch, torch.arange(count) % batch_length(batch)), problem.device, problem.dtype)


def _outputs(problem: Problem, batch: Batch) -> object:
    with torch.no_grad():
        return problem.outputs(batch, {})
