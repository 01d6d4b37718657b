"""Parameters that a model or a loss reaches by other ways than its modules' attributes.

A function that was made before the model was copied, a list of parameters, a loss with weight decay: they hold the
parameters themselves, and `functional_call` replaces attributes of modules only.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class StandIns(TorchFunctionMode):
    """Within the block, every tensor of `table` (by id) that enters a torch function is replaced by its stand-in."""

    def __init__(self, table: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.table = table

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = {name: self._replaced(value) for name, value in (kwargs or {}).items()}
        return func(*map(self._replaced, args), **named)

    def _replaced(self, value: Any) -> Any:
        if type(value) in (list, tuple):
            return type(value)(map(self._replaced, value))
        return self.table.get(id(value), value)
