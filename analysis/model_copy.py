"""The caller's model made ready: a copy of its own, without wrappers, in full precision."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from analysis.errors import MeasurementError
from analysis.function_mode import FunctionMode
from analysis.members import named_parameters, parameters_of
from analysis.recording import recording

FULL = (torch.float32, torch.float64)
"""Precisions in which a residual can certify something."""

_SHARDED = {"FSDPModule", "FullyShardedDataParallel"}

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@recording()
def private_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """The model, copied, without the wrappers of torch.compile and data parallelism.

    Tensors that a model keeps from an earlier run (an activation, the weight that `weight_norm` computes) are copied
    as leaves, by which a loss that is computed from them is known. `memo`, empty, is filled as by `copy.deepcopy`.
    Raises `MeasurementError` for a model that cannot be copied.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
        raise MeasurementError(
            "The model is compiled by torch.jit, which holds on to its own parameters: pass the module that it was "
            "scripted or traced from."
        )
    memo = {} if memo is None else memo
    _refuse_shards(model)
    try:
        with _GraphsLeftBehind():
            private = unwrapped(copy.deepcopy(unwrapped(model, inside=False), memo))
            for parameter in parameters_of(model):
                _note_likewise(parameter, memo)
    except Exception as error:
        said = (str(error).strip().splitlines() or ["no message"])[0]
        raise MeasurementError(
            f"The model cannot be copied ({type(error).__name__}: {said}): take what cannot be copied out of its "
            "attributes."
        ) from error
    for module in private.modules():
        module._compiled_call_impl = None  # what model.compile() leaves
    return private


def _note_likewise(parameter: nn.Parameter, memo: dict[int, Any]) -> None:
    """Copy what somebody noted on a parameter to its copy, which lacks it: a run may change it as it does a buffer."""
    copied = memo.get(id(parameter))
    for name, note in vars(parameter).items() if copied is not None else ():
        if name not in vars(copied):
            try:
                vars(copied)[name] = copy.deepcopy(note, memo)
            except Exception:  # a lock, a process group: what cannot be copied is no number that a run changes
                vars(copied)[name] = note


def _refuse_shards(model: nn.Module) -> None:
    """Raise `MeasurementError` for parameters of which this process holds a part alone."""
    sharded = [part for part in model.modules() if _SHARDED & {kind.__name__ for kind in type(part).__mro__}]
    if sharded or any(type(parameter).__name__ == "DTensor" for parameter in parameters_of(model)):
        raise MeasurementError(
            "The model's parameters are sharded over processes (FSDP): gather its full state_dict, load that into a "
            "plain model, and pass this."
        )


def unwrapped(model: nn.Module, *, inside: bool = True) -> nn.Module:
    """The model in the wrappers of torch.compile and data parallelism; `inside` takes them off its parts too."""
    while (inner := _wrapped(model)) is not None:
        model = inner
    if inside:
        for name, part in list(model._modules.items()):
            if part is not None:
                model._modules[name] = unwrapped(part)
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    if type(model).__name__ == "OptimizedModule":  # torch._dynamo takes a second to import
        return model._modules.get("_orig_mod")
    return model.module if isinstance(model, _PARALLEL) else None


class _GraphsLeftBehind(FunctionMode):
    """Within the block, `copy.deepcopy` makes a leaf of a tensor that belongs to a graph, where torch refuses."""

    def _instead(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].is_leaf:
            return func(*args, **kwargs)
        tensor, memo = args
        memo[id(tensor)] = tensor.detach().clone().requires_grad_()
        return memo[id(tensor)]


def working_dtype(model: nn.Module, wanted: torch.dtype | None) -> torch.dtype:
    """The precision to compute in: `wanted`, or the widest of the parameters, float32 at least.

    Warns where half-precision parameters are raised, and where float64 ones are rounded. Raises `MeasurementError` for
    other precisions and for a model without parameters or values.
    """
    parameters = dict(named_parameters(model))
    if not parameters:
        raise MeasurementError("The model has no parameters, so there is nothing to differentiate.")
    for name, parameter in parameters.items():
        if nn.parameter.is_lazy(parameter) or parameter.is_meta:
            raise MeasurementError(f"The parameter {name} is without values; curvature needs numbers.")
    if wanted is not None and wanted not in FULL:
        raise MeasurementError(f"Curvature is computed in float32 or float64, not in {_said(wanted)}.")
    floats = (p for p in parameters.values() if p.is_floating_point() or p.is_complex())
    found = {parameter.dtype.to_real() for parameter in floats}
    low = [_said(dtype) for dtype in found if dtype not in FULL]
    dtype = wanted or (torch.float64 if torch.float64 in found else torch.float32)
    if low:
        warnings.warn(f"{' and '.join(low)} parameters are raised to {_said(dtype)}, exactly.", stacklevel=4)
    if dtype == torch.float32 and any(map(rounded, parameters.values())):
        warnings.warn(
            "float64 parameters are rounded to float32; in float64 (dtype=float64, --dtype float64) they are kept.",
            stacklevel=4,
        )
    return dtype


def rounded(tensor: Tensor) -> bool:
    """Whether float32 (or its complex numbers) cannot hold the values of a tensor that is wider."""
    if tensor.dtype not in (torch.float64, torch.complex128):
        return False
    narrow = torch.complex64 if tensor.is_complex() else torch.float32
    return not torch.equal(tensor.to(narrow).to(tensor.dtype), tensor)


@recording()
def convert(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move the model to `device` and `dtype`; complex parameters and buffers to the complex type of that precision."""

    def converted(tensor: Tensor) -> Tensor:
        kept = not (tensor.is_floating_point() or tensor.is_complex())
        return tensor.to(device, tensor.dtype if kept else dtype.to_complex() if tensor.is_complex() else dtype)

    model._apply(converted)


def differentiable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters with their names, but for such as hold places or choices, of which there is no derivative."""
    return ((n, p) for n, p in named_parameters(model) if p.is_floating_point() or p.is_complex())


def as_real(parameter: Tensor) -> Tensor:
    """A complex parameter as pairs of real numbers, (..., 2), in the same memory."""
    return torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter


def as_own(real: Tensor, parameter: Tensor) -> Tensor:
    """Values in the parameter's own shape, from those that `as_real` gives them; such as have it already are kept.

    `torch.view_as_complex` would ask of every vector that a product is taken with that its pieces lie at even places.
    """
    pairs = parameter.is_complex() and not real.is_complex()
    return torch.complex(real[..., 0], real[..., 1]) if pairs else real


def _said(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
