"""Losses as sums over samples, so that L is one number however the data are cut into batches.

    L = sum_b S_b / sum_b M_b        (reduction "mean"; L = sum_b S_b for "sum")

over all batches b, S_b the sum of the batch's losses and M_b its normaliser. A loss may return the pair (S_b, M_b)
itself; one that returns a mean or a sum over samples has M_b = the batch's number of samples. The usual losses of
`torch.nn` are recognised as modules, functions and `functools.partial` of functions: class weights and `ignore_index`
then enter M_b as torch divides by them within a batch, so that L is what torch gives on all data in one batch.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.class_axes import class_axis
from analysis.errors import MeasurementError
from analysis.model_copy import convert
from analysis.own_losses import IGNORED, OwnLoss, logits_of
from analysis.recording import recordable

Loss = Callable[[Any, Tensor], Tensor | tuple[Tensor, Tensor | float]]
"""(outputs, targets) -> the mean or the sum over the samples of the batch, a scalar; or (sum, normaliser)."""

Reduction = Literal["mean", "sum"]


class Share(NamedTuple):
    """What a batch contributes to L."""

    total: Tensor  # S_b, scalar
    normaliser: Tensor | float  # M_b
    told: bool  # whether the loss itself gave the normaliser


@dataclass(frozen=True)
class SummedLoss:
    """A loss of any form as the sum over the samples of a batch."""

    function: Loss
    reduction: Reduction  # of L, and of `function` where that returns a scalar

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """S_b, a scalar."""
        return self.share(outputs, targets).total

    def arguments(self, model: nn.Module, targets: Tensor) -> Mapping[str, Tensor]:
        """What the model is given beside its inputs: the targets by name, where it returns its own loss."""
        return self.function.arguments(model, targets) if isinstance(self.function, OwnLoss) else {}

    @property
    def name(self) -> str:
        """The name it goes by, that of torch's function where it is one, or else the function's own."""
        for name, known in LOSSES.items():
            if known.function is self.function:
                return name
        function = self.function.function if isinstance(self.function, TorchLoss) else self.function
        return getattr(function, "__name__", type(function).__name__)

    @property
    def counts_targets(self) -> bool:
        """Whether its normaliser is known to depend on the targets alone."""
        return isinstance(self.function, TorchLoss | OwnLoss) or self.function in (cross_entropy, _next_token)

    def taken(self, outputs: Any) -> Any:
        """What it is a function of: the `logits` of a mapping or an object, but for a function that takes these itself.

        A loss that the model returns is a function of its parameters, not of its logits.
        """
        by_name = isinstance(self.function, TorchLoss) or self.function in (cross_entropy, _next_token)
        return logits_of(outputs) if by_name else outputs

    def share(self, outputs: Any, targets: Tensor) -> Share:
        """S_b and M_b; raises `MeasurementError` where the function returns no scalar."""
        value = self.function(outputs, targets.clone())  # which it may change in place, and are the caller's
        told = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Tensor | Real)
        total, normaliser = value if told else (value, len(targets))
        if not isinstance(total, Tensor) or total.dim() != 0:
            got = f"a tensor of shape {tuple(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
            raise MeasurementError(f"The loss must return a scalar, or (sum, normaliser), not {got}.")
        mean_of_samples = self.reduction == "mean" and not told
        return Share(len(targets) * total if mean_of_samples else total, normaliser, told)


def summed_loss(
    loss: Loss | str, reduction: Reduction, dtype: torch.dtype, device: torch.device, memo: Mapping[int, Any]
) -> SummedLoss:
    """The loss by name or as a function, ready for outputs of `dtype` on `device`.

    A module is copied with the `memo` of the model's copy, which it holds instead where it holds the model. Raises
    `MeasurementError` for an unknown name, for a class, and for a loss of torch whose own reduction is not the stated
    one.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise MeasurementError(f"Unknown loss {loss!r}; use one of {', '.join(LOSSES)}, or pass a function.")
        loss = LOSSES[loss]
    _refuse_class(loss)
    if isinstance(loss, SummedLoss):
        return loss if loss.reduction == reduction else replace(loss, reduction=reduction)
    loss = getattr(loss, "_torchdynamo_orig_callable", getattr(loss, "_orig_mod", loss))  # torch.compile's wrappers
    known = _recognised(loss, reduction)
    if known is None and isinstance(loss, nn.Module):
        loss = copy.deepcopy(loss, dict(memo))
        convert(loss, device, dtype)
    return SummedLoss(known or loss, reduction)


def _refuse_class(loss: object) -> None:
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        raise MeasurementError(f"The loss is the class {loss.__name__}: give an instance of it, as {loss.__name__}().")


@dataclass(frozen=True)
class TorchLoss:
    """A loss of `torch.nn.functional` as (sum, normaliser)."""

    function: Callable[..., Tensor]
    options: Mapping[str, Any]
    normaliser: Callable[[Tensor, Tensor, Mapping[str, Any]], Tensor | float]

    def __call__(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor | float]:
        """(S_b, M_b) of a batch; raises `MeasurementError` where outputs and targets do not belong together."""
        name = self.function.__name__
        given, outputs = outputs, logits_of(outputs)
        if not isinstance(outputs, Tensor):
            raise MeasurementError(
                f"{name} takes the outputs as one tensor, but the model returns {type(outputs).__name__}; pass a "
                "function of (outputs, targets) that picks the tensor."
            )
        options = {
            key: recordable(value.to(outputs)) if isinstance(value, Tensor) else value
            for key, value in self.options.items()
        }
        if self.normaliser is not _weight_of_labels:
            if outputs is not given and outputs.shape == (*targets.shape, 1):
                targets = targets.unsqueeze(-1)  # as what returns `logits` takes them itself where there is one label
            _require_like(name, outputs, targets, options)
            targets = targets.to(outputs.dtype)
        elif not targets.is_floating_point() and targets.dtype != torch.bool:
            targets = targets.long()  # torch takes no other classes, and a uint8 that equals -100 is 156
        if self.function is F.cross_entropy and outputs.dim() > 1 and outputs.shape[1] == 1:
            raise MeasurementError(
                "Cross-entropy over one class is 0 whatever the model returns: for a single logit name the loss "
                "binary_cross_entropy."
            )
        total = self.function(outputs, targets, **options, reduction="sum")
        return total, self.normaliser(outputs, targets, options)


def _weight_of_labels(outputs: Tensor, targets: Tensor, options: Mapping[str, Any]) -> Tensor | float:
    """The class weights of all labels that are not ignored; for class probabilities, the number of distributions."""
    if targets.is_floating_point():
        return outputs.numel() / outputs.shape[1]
    labels = targets[targets.long() != options.get("ignore_index", IGNORED)]
    weight = options.get("weight")
    return labels.numel() if weight is None else weight.double()[labels].sum()


def counted(targets: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Which labels a cross-entropy with torch's `options` counts: none ignored, nor of a class without weight."""
    kept: Tensor = targets.long() != options.get("ignore_index", IGNORED)  # a uint8 equals -100 where it is 156
    weight = options.get("weight")
    return kept if weight is None else kept & (weight.to(targets.device)[targets.long().where(kept, 0)] != 0)


def _elements(outputs: Tensor, targets: Tensor, options: Mapping[str, Any]) -> float:
    return outputs.numel()


def _rows(outputs: Tensor, targets: Tensor, options: Mapping[str, Any]) -> float:
    return len(outputs)


def _require_like(name: str, outputs: Tensor, targets: Tensor, options: Mapping[str, Any]) -> None:
    """Torch would broadcast what does not belong together: (n, 1) and (n,) to n^2 pairs of samples."""
    fits = targets.dim() == outputs.dim() and len(targets) == len(outputs)
    if not fits or any(t not in (1, o) for t, o in zip(targets.shape, outputs.shape, strict=True)):
        raise MeasurementError(
            f"{name} needs targets shaped like the outputs, {tuple(outputs.shape)}, not {tuple(targets.shape)}."
        )
    for key, value in options.items():
        if isinstance(value, Tensor) and value.dim() >= outputs.dim() and value.shape[0] != 1:
            raise MeasurementError(
                f"The {key} of {name} has shape {tuple(value.shape)}: it weighs places in a batch, not samples; put "
                "the weights into the targets and return (sum, normaliser)."
            )


@dataclass(frozen=True)
class _Known:
    module: type[nn.Module]
    options: tuple[str, ...]  # which the module has as attributes, the function as keywords
    normaliser: Callable[[Tensor, Tensor, Mapping[str, Any]], Tensor | float]


_KNOWN: Mapping[Any, _Known] = {
    F.cross_entropy: _Known(nn.CrossEntropyLoss, ("weight", "ignore_index", "label_smoothing"), _weight_of_labels),
    F.nll_loss: _Known(nn.NLLLoss, ("weight", "ignore_index"), _weight_of_labels),
    F.binary_cross_entropy_with_logits: _Known(nn.BCEWithLogitsLoss, ("weight", "pos_weight"), _elements),
    F.binary_cross_entropy: _Known(nn.BCELoss, ("weight",), _elements),
    F.mse_loss: _Known(nn.MSELoss, (), _elements),
    F.l1_loss: _Known(nn.L1Loss, (), _elements),
    F.smooth_l1_loss: _Known(nn.SmoothL1Loss, ("beta",), _elements),
    F.huber_loss: _Known(nn.HuberLoss, ("delta",), _elements),
    F.soft_margin_loss: _Known(nn.SoftMarginLoss, (), _elements),
    F.poisson_nll_loss: _Known(nn.PoissonNLLLoss, ("log_input", "full", "eps"), _elements),
    F.kl_div: _Known(nn.KLDivLoss, ("log_target",), _elements),
}


def _recognised(loss: Loss, reduction: Reduction) -> TorchLoss | None:
    """A loss of torch as (sum, normaliser), or None for any other function."""
    function: Any = loss
    options: dict[str, Any] = {}
    if isinstance(loss, partial) and not loss.args:
        function, options = loss.func, dict(loss.keywords)
    for candidate, known in _KNOWN.items():
        if type(loss) is known.module:
            function, options = candidate, {key: getattr(loss, key) for key in (*known.options, "reduction")}
        if function is candidate:
            own = options.pop("reduction", "mean")
            if own == "none" or not set(options) <= set(known.options):
                return None
            if (own == "sum") != (reduction == "sum"):
                raise MeasurementError(
                    f"{candidate.__name__} with reduction={own!r} is not the {reduction} over samples that was stated: "
                    "make the two agree."
                )
            set_options = {key: value for key, value in options.items() if value is not None}
            return TorchLoss(candidate, set_options, _rows if own == "batchmean" else known.normaliser)
    return None


def cross_entropy(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor | float]:
    """Cross-entropy, also of tokens: targets (N, T), of which -100 is padding, and outputs (N, C, T) or (N, T, C).

    Targets like the outputs are the classes' probabilities.
    """
    outputs = logits_of(outputs)
    if isinstance(outputs, Tensor) and outputs.dim() > 2:
        axis = class_axis(outputs, targets)
        targets = targets.movedim(axis, 1) if targets.dim() == outputs.dim() else targets
        outputs = outputs.movedim(axis, 1)
    return _plain_cross_entropy(outputs, targets)


def _next_token(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor | float]:
    """Cross-entropy of each token given those before it: targets (N, T), -100 for padding, and outputs (N, T, C)."""
    outputs = logits_of(outputs)
    if not isinstance(outputs, Tensor) or outputs.dim() != 3 or outputs.shape[:2] != targets.shape:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise MeasurementError(
            f"next_token needs targets (N, T), the tokens themselves, and outputs (N, T, C), not "
            f"{tuple(targets.shape)} and {got}."
        )
    return _plain_cross_entropy(outputs[:, :-1].movedim(-1, 1), targets[:, 1:])


_LOGISTIC = (F.cross_entropy, F.binary_cross_entropy_with_logits)

_plain_cross_entropy = TorchLoss(F.cross_entropy, {}, _weight_of_labels)

LOSSES: Mapping[str, SummedLoss] = {
    "cross_entropy": SummedLoss(cross_entropy, "mean"),
    "mse": SummedLoss(TorchLoss(F.mse_loss, {}, _elements), "mean"),
    "binary_cross_entropy": SummedLoss(TorchLoss(F.binary_cross_entropy_with_logits, {}, _elements), "mean"),
    "next_token": SummedLoss(_next_token, "mean"),
    "own_per_sample": SummedLoss(OwnLoss("sample"), "mean"),
    "own_per_label": SummedLoss(OwnLoss("label"), "mean"),
    "own_per_next_label": SummedLoss(OwnLoss("next_label"), "mean"),
}
"""Losses by name, each a mean unless a sum is asked for; `own_...` are those that the model returns itself."""


def shift_of(loss: SummedLoss) -> int | None:
    """By how many tokens the targets of a loss of tokens are ahead of what predicts them; None for other losses."""
    if loss.function is _next_token:
        return 1
    known = loss.function
    is_cross_entropy = known is cross_entropy or (isinstance(known, TorchLoss) and known.function is F.cross_entropy)
    return 0 if is_cross_entropy else None


def saturates(loss: SummedLoss) -> bool:
    """Whether its second derivative is that of a softmax or sigmoid, p (1 - p): for all that is known of it."""
    known = loss.function.function if isinstance(loss.function, TorchLoss) else loss.function
    return known in (cross_entropy, _next_token, *_LOGISTIC) or isinstance(known, OwnLoss)


def is_convex(loss: SummedLoss) -> bool:
    """Whether it is known to be convex in the outputs, so that the Gauss-Newton matrix has no negative eigenvalue."""
    known = loss.function.function if isinstance(loss.function, TorchLoss) else loss.function
    return known in (cross_entropy, _next_token, *_LOGISTIC, F.mse_loss)
