"""Models, losses and data of which L is no fixed sum over samples, so that its second derivatives mean nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from analysis.agreement import Part, agree, elsewhere_of, part_at, parts_together
from analysis.batches import Batch, batch_length, moved, sliced, tensors
from analysis.derivatives import ancestors, graph_results
from analysis.errors import MeasurementError
from analysis.losses import SummedLoss, shift_of
from analysis.model_copy import differentiable
from analysis.own_losses import IGNORED, OwnLoss
from analysis.parametric_loss import ParametricLoss

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_DROPOUTS = (nn.modules.dropout._DropoutNd,)
FEW = 4

MOVING_NORMALISER = (
    "The normaliser that the loss returns changes with the parameters; it may depend on the targets only."
)


def refuse_unfit(module: nn.Module) -> None:
    """Raise `MeasurementError` for a module that is random or mixes the samples of a batch."""
    kind = type(module).__name__
    if isinstance(module, _BATCH_NORMS) and (module.training or module.running_mean is None):
        raise MeasurementError(
            f"{kind} uses batch statistics here, so the loss is no sum over samples and its Hessian depends on the "
            "batches; use evaluation mode with running statistics."
        )
    if isinstance(module, _DROPOUTS) and module.training and module.p > 0:
        raise MeasurementError(f"{kind} is random in training mode, so L has no fixed Hessian; use mode='eval'.")


def first_that_count(problem: ParametricLoss, first: Batch) -> Batch:
    """The samples from the first few with a target that counts on: padding alone shows nothing. `first` if none has."""
    for batch in chain([first], problem.data):
        for start in range(0, batch_length(batch), FEW):
            few = moved(sliced(batch, start, start + FEW), problem.device, problem.dtype)
            if part_at(problem, few, {}).normaliser != 0:
                return sliced(batch, start, batch_length(batch))
    return first


def refuse_at_first_sight(problem: ParametricLoss, first: Batch) -> None:
    """Check on a few samples that L is one fixed number and a sum over samples with the stated reduction."""
    few = min(FEW, batch_length(first))
    start = moved(sliced(first, 0, few), problem.device, problem.dtype)
    _refuse_graph(problem, start)
    whole, again = part_at(problem, start, {}), part_at(problem, start, {})
    parts = parts_together([part_at(problem, sliced(start, n, n + 1), {}) for n in range(few)])
    if not (whole.finite and again.finite and parts.finite):
        bad = next(part for part in (whole, again, parts) if not part.finite)
        alone = ""
        if bad is parts:
            alone = (
                " where each is taken alone (a mean over labels that count must return (sum, normaliser); a loss of "
                "pairs or groups of samples is no sum over samples)"
            )
        raise MeasurementError(f"The loss of the first samples is {bad.total}{alone}; curvature needs a finite loss.")
    if not agree(problem, whole, again, start, {}):
        raise MeasurementError("The model gives another loss each time it runs; switch its randomness off first.")
    if not agree(problem, whole, parts, start, {}):
        raise no_sum(problem, whole, parts, few)
    elsewhere = elsewhere_of(problem)
    moving = part_at(problem, start, elsewhere)
    moving_parts = parts_together([part_at(problem, sliced(start, n, n + 1), elsewhere) for n in range(few)])
    if moving.finite and moving_parts.finite and not agree(problem, moving, moving_parts, start, elsewhere):
        raise no_sum(problem, moving, moving_parts, few)
    if whole.told and moving.finite and moving.normaliser != whole.normaliser:
        raise MeasurementError(MOVING_NORMALISER)


@contextmanager
def running_in_its_precision(problem: ParametricLoss, first: Batch) -> Iterator[None]:
    """Say in a sentence that a model or loss runs in the other precision alone, float32 or float64, or in none."""
    try:
        yield
    except RuntimeError as error:
        if "nference tensor" in str(error):
            raise MeasurementError(
                "The model or the loss holds a tensor that was made under torch.inference_mode, of which there are no "
                "derivatives: make it under torch.no_grad, or pass a clone of it."
            ) from error
        here, other = ("float32", "float64") if problem.dtype == torch.float32 else ("float64", "float32")
        if isinstance(error, torch.OutOfMemoryError) or not _runs_in(getattr(torch, other), problem, first):
            raise
        said = (str(error).strip().splitlines() or ["no message"])[0]
        raise MeasurementError(
            f"The model or the loss does not run in {here} ({said}): something in it stays in {other}, such as a "
            "loss's weights, a part or a state that forward makes; let it take the type of what it is computed with, "
            f"or measure in {other}."
        ) from error


def _runs_in(dtype: torch.dtype, problem: ParametricLoss, first: Batch) -> bool:
    other = problem.of_a_copy(dtype)
    try:
        part_at(other, moved(sliced(first, 0, 1), other.device, other.dtype), {})
    except RuntimeError:
        return False
    return True


def no_sum(problem: ParametricLoss, whole: Part, parts: Part, last: int) -> MeasurementError:
    """What is raised where `parts` that end with sample `last` do not add up to the `whole`."""
    reduction = "sum" if whole.told else problem.reduction
    why = (
        "either samples influence one another, or the mean that the model returns is over something else than "
        f"{problem.loss.function.per}s (own_per_sample, own_per_label, own_per_next_label)"
        if isinstance(problem.loss.function, OwnLoss)
        else "either samples influence one another or the loss has another reduction than stated; a loss that weighs "
        "its samples must return (sum, normaliser)"
    )
    ratio = f", but {1 + float(f'{whole.total / parts.total - 1:.4g}'):.12g} times that" if parts.total else ", 0"
    return MeasurementError(
        f"The loss of {parts.samples} samples together (up to sample {last}) is not the {reduction} of their losses "
        f"taken apart{ratio}: {why}."
    )


def _refuse_graph(problem: ParametricLoss, batch: Batch) -> None:
    """Refuse a loss of other tensors than the model's parameters, of none of them, or computed in half precision."""
    parameters = {name: p.detach().requires_grad_() for name, p in differentiable(problem.model)}
    with torch.enable_grad():
        share, again = problem.share(batch, parameters), problem.share(batch, parameters)
        if (_leaves(share.total, batch) & _leaves(again.total, batch)).difference(parameters.values()):
            raise MeasurementError(
                "The loss depends on tensors that require a gradient and are no parameters of the model, such as one "
                "that was computed from them before: compute it within the model or loss, or detach it."
            )
    if isinstance(share.normaliser, Tensor) and share.normaliser.requires_grad:
        raise MeasurementError("The normaliser that the loss returns depends on the parameters: detach it.")
    if not share.total.requires_grad and share.normaliser != 0:  # a loss that the model returns is none of no labels
        raise MeasurementError(
            "The loss does not depend on the model's parameters; is it computed under torch.no_grad or detached?"
        )
    precisions = {share.total.dtype, *(result.dtype for result in graph_results([share.total]))}
    for dtype in (torch.float16, torch.bfloat16):
        if dtype in precisions:
            raise MeasurementError(
                f"The model or the loss computes in {str(dtype).removeprefix('torch.')} (a cast, or autocast), which "
                "is too coarse for curvature: let it compute in float32."
            )


def _leaves(total: Tensor, batch: Batch) -> set[Tensor]:
    """The leaves that a loss was computed from, but for its samples; one made on the way is another each time."""
    found = {node.variable for node in ancestors(total) if hasattr(node, "variable")}
    return found.difference(tensors(batch))


def refuse_shift(loss: SummedLoss, batch: Batch) -> None:
    """Refuse targets that are the input tokens for a loss that shifts nothing, and shifted ones for one that does."""
    shift, targets = shift_of(loss), batch[1]
    given = {"input_ids": batch[0][0]} if isinstance(batch[0], tuple) and len(batch[0]) == 1 else batch[0]
    inputs = given.get("input_ids") if isinstance(given, dict) else None
    if shift is None or not isinstance(inputs, Tensor) or inputs.shape != targets.shape or targets.dim() != 2:
        return
    if inputs.is_floating_point() or targets.is_floating_point():
        return
    same, moved_by_one = _equal(targets, inputs), _equal(targets[:, :-1], inputs[:, 1:])
    if shift == 0 and same:
        raise MeasurementError(
            "The targets are the input tokens themselves, which a model reads off: for the loss of the next token name "
            "the loss next_token."
        )
    if shift == 1 and moved_by_one and not same:
        raise MeasurementError(
            "The targets are the input tokens moved by one already, and next_token would move them again: name the "
            "loss cross_entropy."
        )


def _equal(targets: Tensor, tokens: Tensor) -> bool:
    """Whether the targets that count are these tokens, not all alike."""
    counted = targets.long() != IGNORED
    own, given = targets[counted].long(), tokens.to(targets.device)[counted].long()
    return len(own.unique()) > 1 and torch.equal(own, given)
