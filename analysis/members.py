"""The parameters that a module has, also where a method of its own gives some of them alone, or returns nothing."""

from collections.abc import Iterator

from torch import nn

from analysis.errors import MeasurementError


def named_parameters(
    module: nn.Module, *, recurse: bool = True, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Parameter]]:
    """As `nn.Module.named_parameters` gives them, whatever the class of the module has in its place."""
    return nn.Module.named_parameters(module, recurse=recurse, remove_duplicate=remove_duplicate)


def parameters_of(module: nn.Module) -> Iterator[nn.Parameter]:
    """The same without their names."""
    return (parameter for _, parameter in named_parameters(module))


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
