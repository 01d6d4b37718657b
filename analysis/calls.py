"""A model run with other tensors in place of its parameters and buffers, after which it has its own again.

`torch.func.functional_call` sees a module that a model holds under two names as two with tied weights, sets its tensors
twice, and gives back what it found the second time: the model keeps the other tensors for good.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call(
    model: nn.Module, tensors: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> Any:
    """What the model returns with `tensors` for its own, by any of their names; where it ties some, for all of them.

    >>> import torch
    >>> from analysis.calls import call
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> twice = torch.nn.Sequential(layer, layer)
    >>> call(twice, {"0.weight": 2 * torch.eye(2)}, (torch.ones(2),)).tolist()
    [4.0, 4.0]
    >>> twice[1].weight is layer.weight and isinstance(layer.weight, torch.nn.Parameter)
    True
    """
    kinds = (nn.Module.named_parameters, nn.Module.named_buffers)  # where a class has its own, they may be fewer
    own = dict(named for kind in kinds for named in kind(model, remove_duplicate=False))
    given = {id(own[name]): tensor for name, tensor in tensors.items()}
    places = {
        f"{prefix}.{short}" if prefix else short: given[id(tensor)]
        for prefix, module in model.named_modules()  # each module once
        for kind in kinds
        for short, tensor in kind(module, recurse=False, remove_duplicate=False)
        if id(tensor) in given
    }
    return functional_call(model, places, tuple(args), dict(kwargs or {}), tie_weights=False)
