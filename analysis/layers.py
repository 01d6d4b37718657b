"""The layers of a network: modules that own selected parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from analysis.errors import MeasurementError
from analysis.problem import Problem


@dataclass(frozen=True)
class Layer:
    """A module that owns selected parameters directly; weight and bias together are its block."""

    name: str  # as in model.named_modules()
    module: nn.Module  # of the problem's private copy
    parameters: Mapping[str, str]  # the parameter's name in the module -> its name in the model


def find_layers(problem: Problem, names: Sequence[str] | None = None) -> list[Layer]:
    """The layers `names`, or all, in the model's order. A tied parameter belongs to the first layer that owns it.

    Raises `MeasurementError` for a name that is no layer with selected parameters.
    """
    owned: set[str] = set()
    layers = []
    names_of = {id(p): name for name, p in problem.model.named_parameters() if name in problem.parameters}
    for name, module in problem.model.named_modules():
        own = {short: names_of[id(p)] for short, p in module.named_parameters(recurse=False) if id(p) in names_of}
        own = {short: full for short, full in own.items() if full not in owned}
        owned.update(own.values())
        if own:
            layers.append(Layer(name, module, own))
    known = [layer.name for layer in layers]
    for name in names or ():
        if name not in known:
            raise MeasurementError(
                f"There is no layer {name!r} with selected parameters; the layers are {', '.join(known)}."
            )
    return [layer for layer in layers if names is None or layer.name in names]
