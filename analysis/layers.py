"""The layers of a network, modules that own selected parameters, and groups of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from analysis.errors import MeasurementError
from analysis.members import named_parameters
from analysis.problem import Problem

NORMALISATIONS = (
    nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.RMSNorm,
)  # fmt: skip
"""Modules whose parameters scale and move what the layer before them computes."""


@dataclass(frozen=True)
class Layer:
    """A module that owns selected parameters directly; weight and bias together are its block."""

    name: str  # as in model.named_modules()
    module: nn.Module  # of the problem's private copy
    parameters: Mapping[str, str]  # the parameter's name in the module -> its name in the model


def find_layers(problem: Problem, names: Sequence[str] | None = None) -> list[Layer]:
    """The layers `names`, or all, in the model's order. A tied parameter belongs to the first layer that owns it.

    Raises `MeasurementError` for a name that is no layer with selected parameters.

    >>> import torch
    >>> from analysis.layers import find_layers
    >>> from analysis.problem import make_problem
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> problem = make_problem(model, "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 2))
    >>> [layer.name for layer in find_layers(problem)]
    ['0', '2']
    """
    owned: set[str] = set()
    layers = []
    names_of = {id(p): name for name, p in named_parameters(problem.model) if name in problem.parameters}
    for name, module in problem.model.named_modules():
        own = {short: names_of[id(p)] for short, p in named_parameters(module, recurse=False) if id(p) in names_of}
        own = {short: full for short, full in own.items() if full not in owned and problem.parameters[full].numel()}
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


def weights_of(problem: Problem) -> set[str]:
    """Names of the selected parameters that are weights: of two or more dimensions, but for biases and normalisations.

    >>> import torch
    >>> from analysis.layers import weights_of
    >>> from analysis.problem import make_problem
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    >>> weights_of(make_problem(model, "cross_entropy", (torch.randn(20, 2), torch.arange(20) % 3)))
    {'0.weight'}
    """
    own = dict(named_parameters(problem.model))  # complex ones in the dimensions that they have there
    return {
        full
        for layer in find_layers(problem)
        if not isinstance(layer.module, NORMALISATIONS)
        for short, full in layer.parameters.items()
        if own[full].dim() >= 2 and not is_bias(short)
    }


def is_bias(name: str) -> bool:
    """Whether a parameter of this name is one, also of a recurrent layer's or behind a parametrization."""
    return any(part == "bias" or part.startswith("bias_") for part in name.split("."))


@dataclass(frozen=True)
class Group:
    """Layers whose parameters together are one block; each layer is one of its own where nothing is grouped."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> Iterator[str]:
        """The names of its parameters in the model."""
        return (full for layer in self.layers for full in layer.parameters.values())


BLOCK = "block"
"""Groups by the first number in a layer's name: the blocks of which a network is a list."""


def find_groups(problem: Problem, names: Sequence[str] | None = None, by: str | None = None) -> list[Group]:
    """The layers `names`, or all, in groups; a layer that belongs to none stays on its own.

    `by` is "block" (`h.3.attn.c_proj` and `h.3.ln_1` make `h.3`), or patterns separated by commas: each matches the
    first parts of a name (`transformer.h.*`) or, where it is the beginning of none, some parts that follow one another
    (`h.*`). Layers whose names are the same up to the end of what the first fitting pattern matches make a group, which
    is called the rest where an earlier pattern took some of what is below its name. Raises `MeasurementError` where a
    name or a pattern is that of no layer.
    """
    layers = find_layers(problem, names)
    patterns = [pattern.strip() for pattern in by.split(",")] if by else []
    fits = {pattern: _fits(layers, pattern) for pattern in patterns}
    for number, pattern in enumerate(patterns):
        if not fits[pattern]:
            lacking = "has a number in its name" if pattern == BLOCK else f"fits the pattern {pattern!r}"
            raise MeasurementError(f"No layer {lacking}; the layers are {', '.join(layer.name for layer in layers)}.")
        if all(any(name in fits[earlier] for earlier in patterns[:number]) for name in fits[pattern]):
            raise MeasurementError(
                f"All that fits the pattern {pattern!r} fits one before it, and is in that one's groups: put it first."
            )
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        name = next((fits[pattern][layer.name] for pattern in patterns if layer.name in fits[pattern]), layer.name)
        groups.setdefault(name, []).append(layer)
    return [Group(_called(name, groups), tuple(members)) for name, members in groups.items()]


def _fits(layers: Sequence[Layer], pattern: str) -> dict[str, str]:
    """Of the layers that the pattern fits, the name up to the end of what it matches."""
    found = {layer.name: _up_to(layer.name, pattern) for layer in layers}
    fitting = {name: end for name, end in found.items() if end is not None}
    parts = pattern.count(".") + 1
    from_the_start = {name: end for name, end in fitting.items() if end.count(".") + 1 == parts}
    return (from_the_start if pattern != BLOCK else {}) or fitting


def _up_to(name: str, pattern: str) -> str | None:
    """The name up to the end of the first parts that the pattern's parts match, or None."""
    parts, wanted = name.split("."), pattern.split(".")
    for end in range(len(wanted), len(parts) + 1):
        last = parts[end - len(wanted) : end]
        if last[0].isdecimal() if pattern == BLOCK else all(map(fnmatchcase, last, wanted)):
            return ".".join(parts[:end])
    return None


def _called(name: str, groups: Mapping[str, Sequence[Layer]]) -> str:
    """What a group is called: a module's name is for all of it."""
    grouped = any(layer.name != name for layer in groups[name])
    elsewhere = any(
        layer.name.startswith(f"{name}.") for other, own in groups.items() if other != name for layer in own
    )
    return f"{name} (rest)" if grouped and elsewhere else name
