"""What is differentiated: a loss of a model's outputs over a fixed set of samples, as a function of some parameters.

    L(theta) = 1/M sum_n loss(model(theta, x_n), y_n)          (reduction "mean"; without the 1/M for "sum")

The sum always runs over all N samples, and M is N or the sum of all samples' weights (`analysis.losses`): a number
never is a mean of batch means. The model is copied, so the caller's modes, gradients and flags are never touched.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from analysis.batches import Batch, Part, inspect_data
from analysis.changed_weights import unchanged_by_runs
from analysis.distributed import Distributed, require_ranks, summed_number
from analysis.errors import MeasurementError, require_one_of
from analysis.first_pass import FirstPass
from analysis.ieee import ieee
from analysis.losses import Loss, Reduction, summed_loss
from analysis.members import canonical_names, named_parameters, parameters_of, set_mode
from analysis.memory import DEFAULT_MEMORY, plan_chunks
from analysis.model_copy import as_real, convert, differentiable, private_copy, working_dtype
from analysis.model_state import State
from analysis.parametric_loss import ParametricLoss
from analysis.recording import recording
from analysis.refusals import (
    first_that_count,
    refuse_at_first_sight,
    refuse_shift,
    refuse_unfit,
    running_in_its_precision,
)
from analysis.substituted import refuse_other_than_parameters
from analysis.survey import survey, weighed
from analysis.symmetry import refuse_wrong_products
from analysis.true_slopes import refuse_wrong_derivatives

T = TypeVar("T")

Mode = Literal["eval", "train"]


class Problem(ParametricLoss):
    """A loss that was found to be a sum over samples, as a function of parameters; `make_problem` makes it."""

    @recording()
    def on(self, data: Any, *, checked: bool = False, distributed: Distributed | None = None) -> "Problem":
        """The same model and loss on other data, given as to `make_problem`, and checked as there if not `checked`.

        They are `distributed` as this problem's are, or as is said.
        """
        inspected = inspect_data(data)
        spread = self.distributed if distributed is None else distributed
        samples = round(summed_number(inspected.samples, self.device, spread))
        other = replace(self, data=inspected.batches, samples=samples, distributed=spread, first_pass=FirstPass())
        return replace(other, normaliser=weighed(other) if checked else survey(other))

    def part(self, index: int, parts: int) -> "Problem":
        """The mean (or sum) over every `parts`-th sample only, beginning with sample `index`."""
        return self.on(Part(self.data, index, parts), checked=True)


@recording()
def make_problem(
    model: nn.Module,
    loss: Loss | str,
    data: Any,
    *,
    parameters: Iterable[str] | None = None,
    reduction: Reduction = "mean",
    mode: Mode = "eval",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory: int = DEFAULT_MEMORY,
    chunk_size: int | None = None,
    distributed: Distributed = False,
) -> Problem:
    """Describe L for any model, loss and data.

    `loss` is a name in `analysis.losses.LOSSES`, a loss of `torch.nn` (module, function or partial), or any function of
    (outputs, targets) that returns the stated `reduction` over samples, or (sum, normaliser) where samples have
    weights. `data` is `(inputs, targets)` or an iterable of such batches; `inputs` is a tensor, a tuple or a mapping of
    tensors, a batch of more than two items is several inputs followed by targets, and a batch that is a mapping holds
    its targets as "labels". Inputs of one row, None and plain values are meant for every sample. Re-iterable data (a
    DataLoader) are read anew at every pass and must give the same samples each time; an iterator is stored.
    `parameters` names the selection (default: all that require a gradient), `device` defaults to the model's, `dtype`
    (float32 or float64) to the widest of its parameters, half precision being raised to float32 with a warning.
    `memory` is the number of bytes that first-order graphs may take, and the vectors of an iteration as many again;
    `chunk_size` overrides the size chosen from it.
    With `distributed`, `data` are the share of this rank of the initialised process group, and every number is that of
    all shares together; with "copies" they are all samples, which are too few for a share each, on every rank.
    Wrappers of torch.compile and data parallelism are taken off.

    Costs 2.5 forward passes over the data, in which every batch is compared with its parts, on up to four samples a
    product together and one for each, and on one some four passes and four gradients in float64. Raises
    `MeasurementError` where second derivatives of a sum over samples would be meaningless: dropout or batch norm in
    training mode, a random forward pass, samples that influence one another, a reduction that is not the stated one,
    weights that change when the model runs, a gradient or a product that is not the loss's.

    >>> import torch
    >>> from analysis.problem import make_problem
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> problem = make_problem(model, "mse", (torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1)))
    >>> problem.size, problem.samples
    (2, 2)
    """
    if not isinstance(model, nn.Module):
        raise MeasurementError(
            f"The model is a {type(model).__name__}: give a torch.nn.Module, by whose parameters the loss is "
            "differentiated."
        )
    require_one_of(reduction, Reduction, "reduction")
    require_one_of(mode, Mode, "mode")
    dtype = working_dtype(model, dtype)
    memo: dict[int, Any] = {}
    private = private_copy(model, memo)
    trained = frozenset(name for name, parameter in named_parameters(private) if parameter.requires_grad)
    device = torch.device(device) if device is not None else next(parameters_of(private)).device
    selection = _selected_names(private, parameters)
    convert(private, device, dtype)
    set_mode(private, mode == "train")
    for parameter in parameters_of(private):
        parameter.requires_grad_(False)
    for module in private.modules():
        refuse_unfit(module)
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    named = dict(named_parameters(private))
    inspected = inspect_data(data)
    if distributed:
        require_ranks()
    problem = Problem(
        model=private,
        loss=summed_loss(loss, reduction, dtype, device, memo),
        reduction=reduction,
        parameters={name: as_real(named[name]) for name in selection},
        trained=trained.union(selection),
        modes=[(module, memo[id(module)].training) for module in model.modules() if id(module) in memo],
        aliases=[*zip(parameters_of(model), named, strict=True), *((p, name) for name, p in named.items())],
        state=State.of(private, memo),
        data=inspected.batches,
        samples=round(summed_number(inspected.samples, device, distributed)),
        normaliser=1.0,
        dtype=dtype,
        device=device,
        chunk_size=chunk_size or 1,
        cached_samples=0,
        memory=memory,
        distributed=distributed,
        first_pass=FirstPass(),
    )
    with problem.passing(), running_in_its_precision(problem, inspected.first):
        refuse_shift(problem.loss, inspected.first)
        problem = unchanged_by_runs(problem, inspected.first)
        first = _told_from_rounding(partial(_tried, first=inspected.first), problem)
        plan = plan_chunks(problem, first, memory, chunk_size)
    plan = plan.agreed(device, distributed)
    problem = replace(problem, chunk_size=plan.chunk_size, cached_samples=plan.cached_samples)
    return replace(problem, normaliser=_told_from_rounding(survey, problem))


def _tried(problem: Problem, first: Batch) -> Batch:
    """The first batch that counts, on which losses and derivatives are those of a sum over samples."""
    first = first_that_count(problem, first)
    refuse_at_first_sight(problem, first)
    refuse_other_than_parameters(problem, first)
    refuse_wrong_products(problem, first)
    refuse_wrong_derivatives(problem, first)
    return first


@ieee()
def _told_from_rounding(check: Callable[[Problem], T], problem: Problem) -> T:
    """What `check` returns of the problem; of what it refuses in float32 alone, say that it is rounding."""
    try:
        return check(problem)
    except MeasurementError as error:
        if problem.dtype == torch.float64 or not _passes(check, problem):
            raise
        raise MeasurementError(
            "Rounding in float32 leaves too little of this model's loss or its derivatives: measure it in float64 "
            f"(dtype=torch.float64, --dtype float64), where what follows is not so. {error}"
        ) from error


def _passes(check: Callable[[Problem], object], problem: Problem) -> bool:
    try:
        check(problem.of_a_copy(torch.float64))
    except (MeasurementError, RuntimeError, TypeError):  # the latter where something in it stays in float32
        return False
    return True


def _selected_names(model: nn.Module, names: Iterable[str] | None) -> list[str]:
    """The selection by canonical name, in the model's order; a tied parameter answers to each of its names."""
    if names is None:
        selection = {name for name, parameter in named_parameters(model) if parameter.requires_grad}
    else:
        selection = canonical_names(model, names)
        if fixed := selection.difference(name for name, _ in differentiable(model)):
            raise MeasurementError(f"The parameter {min(fixed)} holds integers, of which there is no derivative.")
    if not selection:
        raise MeasurementError("No parameter is selected: all are frozen; name some or unfreeze them.")
    return [name for name, _ in named_parameters(model) if name in selection]
