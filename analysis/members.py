"""The parameters that a module has, also where a method of its own gives some of them alone, or returns nothing."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from analysis.errors import MeasurementError, some


def named_parameters(
    module: nn.Module, *, recurse: bool = True, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Parameter]]:
    """As `nn.Module.named_parameters` gives them, whatever the class of the module has in its place."""
    return nn.Module.named_parameters(module, recurse=recurse, remove_duplicate=remove_duplicate)


def parameters_of(module: nn.Module) -> Iterator[nn.Parameter]:
    """The same without their names."""
    return (parameter for _, parameter in named_parameters(module))


def canonical_names(model: nn.Module, names: Iterable[str]) -> set[str]:
    """The first name of each parameter; a tied one answers to each of its names, and to those in torch's wrappers.

    Raises `MeasurementError` for what is no name of a parameter.
    """
    first = {id(parameter): name for name, parameter in named_parameters(model)}
    known = {name: first[id(parameter)] for name, parameter in named_parameters(model, remove_duplicate=False)}
    found = set()
    for name in [names] if isinstance(names, str) else names:
        if not isinstance(name, str):
            raise MeasurementError(f"Parameters are selected by their names, not as {type(name).__name__}s.")
        plain = name if name in known else name.replace("_orig_mod.", "").removeprefix("module.")
        if plain not in known:
            raise MeasurementError(f"The model has no parameter {name!r}; it has {some(known)}.")
        found.add(known[plain])
    return found


@contextmanager
def in_modes(modes: Sequence[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Within the block the modules are in training, or not; afterwards they are as they were."""
    changed = [(module, training) for module, training in modes if module.training != training]
    try:
        for module, training in changed:
            module.training = training
        yield
    finally:
        for module, training in changed:
            module.training = not training


def set_mode(module: nn.Module, training: bool) -> None:
    """Call its `train`, which may be the module's own: one that keeps a part in evaluation mode, say.

    Raises `MeasurementError` for one that takes no mode.
    """
    try:
        module.train(training)
    except TypeError as error:
        raise MeasurementError(
            f"The model's own train() cannot set its mode ({error}): let it take one, as nn.Module.train(mode) does, "
            "or give it another name."
        ) from error
