"""A user's own model, weights, data and loss, as the command line names them."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from analysis.batches import Inspected, inspect_data
from analysis.class_axes import distribution_axes
from analysis.losses import LOSSES, Loss
from analysis.members import parameters_of
from analysis.model_copy import convert, unwrapped, working_dtype
from analysis.problem import Problem, make_problem
from flatlab.errors import SAID, UsageError, first_line, told_in_a_sentence
from flatlab.functions import import_function
from flatlab.measuring.hub_models import names_hub_model, open_hub_model
from flatlab.measuring.loss_samples import require_shares, shared_out, some_of
from flatlab.measuring.ranks import ranks, require_alike, seed_alike, spread
from flatlab.measuring.weights import load_weights
from flatlab.runs.fingerprint import tensors_of, weights_digest

USUAL_LOSS = "cross_entropy"


@dataclass(frozen=True)
class OwnModel:
    """Names of functions, and a file."""

    model: str  # package.module:function, returns a torch.nn.Module; or hf:NAME, timm:NAME
    data: str  # package.module:function, returns (inputs, targets) or batches of these
    weights: Path | None = None  # in any form that `weights.py` reads; None: the parameters that the function returns
    loss: str | None = None  # in LOSSES, or package.module:function; None: what the model is trained on


@dataclass(frozen=True)
class OpenedModel:
    """A user's model, loss and data."""

    problem: Problem
    available: int  # samples there are, of which the problem's are some
    loss: str  # its name
    notes: tuple[str, ...]  # what the user should hear of it, a sentence each


def open_own(own: OwnModel, samples: int | None, dtype: torch.dtype, device: str) -> OpenedModel:
    """The loss of a user's model on `samples` of the user's data (None: all).

    Raises `UsageError` for whatever is missing, fails or does not fit.
    """
    seed_alike()
    model, usual_loss, notes = _model(own, dtype)
    if ranks() > 1:
        said = f"The model {own.model} has other parameters in each process: let the function draw from a fixed seed."
        require_alike(weights_digest(tensors_of(model)), said)
    named = own.loss or usual_loss
    loss = _loss(named)
    data, of_data = _data(own)
    if own.loss is None and named == USUAL_LOSS:
        require_distributions(data, str(own.data), "--loss mse")
    if samples is not None and samples > data.samples:
        raise UsageError(f"{own.data} returns {data.samples} samples: ask for 1 to {data.samples}, not {samples}.")
    batches = data.batches if samples is None else some_of(data, samples)
    count = samples or data.samples
    share = shared_out(batches, count)
    if share is not batches:
        require_shares(batches, share, own.data)
    with told_in_a_sentence(f"The model {own.model} with the loss {named} fails on the data of {own.data}"):
        problem = make_problem(model, loss, share, dtype=dtype, device=device, distributed=spread(count))
    return OpenedModel(problem, data.samples, named, (*notes, *of_data))


def _model(own: OwnModel, dtype: torch.dtype) -> tuple[nn.Module, str, list[str]]:
    """The model in `dtype` with its weights, the loss that it is trained on, and what there is to say of them."""
    if names_hub_model(own.model):
        hub = open_hub_model(own.model, dtype)
        notes = [] if own.weights is None else load_weights(hub.module, own.weights, own.model)
        if own.loss is None and hub.loss != USUAL_LOSS:
            notes.append(f"The loss is {hub.loss}, on which {own.model} is trained; --loss names others.")
        return hub.module, hub.loss, [*hub.notes, *notes]
    model = _call(own.model, "model")
    if not isinstance(model, nn.Module):
        raise UsageError(f"The model {own.model} must return a torch.nn.Module, but returned {type(model).__name__}.")
    model = unwrapped(model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        dtype = working_dtype(model, dtype)
    # Before foreign weights come, which may be finer than the model's own. `Module.to` would make complex ones real.
    convert(model, next(parameters_of(model)).device, dtype)
    notes = [f"Of {own.model}: {warning.message}" for warning in told]
    if own.weights is not None:
        return model, USUAL_LOSS, [*notes, *load_weights(model, own.weights, own.model)]
    said = f"The weights measured are those that {own.model} returned; --weights names others."
    return model, USUAL_LOSS, [*notes, said]


def _data(own: OwnModel) -> tuple[Inspected, list[str]]:
    """The user's data after one pass, and what there is to say of them."""
    data = _call(own.data, "data")
    notes = taken_for_batches(data, own.data)
    try:
        return inspect_data(data), notes
    except SAID as error:
        raise UsageError(f"What {own.data} returns cannot be used. {error}") from error
    except Exception as error:
        raise UsageError(f"Reading the data of {own.data} fails: {first_line(error)}.") from error


def taken_for_batches(data: object, name: str) -> list[str]:
    """What there is to say of data that may be meant for a training and a test set."""
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, tuple) for part in data):
        return [f"The two pairs of {name} are taken for two batches and measured together, not for train and test."]
    return []


def require_distributions(data: Inspected, whose: str, option: str) -> None:
    """Numbers that are no probabilities of classes belong to another loss than the one that nobody named.

    Raises `UsageError`, which names the data and how a loss is named.
    """
    targets = data.first[1]
    if targets.is_floating_point() and not distribution_axes(targets):
        raise UsageError(
            f"The targets of {whose} are numbers that do not add up to one for each sample: name the loss they are "
            f"for ({option}, binary_cross_entropy, ...)."
        )


def _loss(name: str) -> Loss:
    if ":" in name:
        return import_function(name, "loss")
    if name not in LOSSES:
        raise UsageError(
            f"There is no loss called '{name}': choose one of {', '.join(LOSSES)}, or name a function of your own as "
            "package.module:function."
        )
    return LOSSES[name]


def _call(name: str, role: str) -> object:
    function = import_function(name, role)
    try:
        return function()
    except Exception as error:
        raise UsageError(f"The {role} {name}, called without arguments, raised {first_line(error)}.") from error
