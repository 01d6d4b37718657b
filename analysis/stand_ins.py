"""Parameters that a model or a loss reaches by other ways than its modules' attributes.

A function that was made before the model was copied, a list of parameters, a loss with weight decay: they hold the
parameters themselves, and `functional_call` replaces attributes of modules only.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from analysis.function_mode import FunctionMode

_ASKED = Tensor.requires_grad.__get__  # type: ignore[attr-defined]


class StandIns(FunctionMode):
    """Within the block, every tensor of `table` (by id) that enters a torch function is replaced by its stand-in.

    Those of `trained` (by id) say that they require a gradient, as they do in L whatever it is differentiated by: a
    loss may add up the parameters that train.
    """

    def __init__(self, table: Mapping[int, Tensor], trained: Collection[int] = ()) -> None:
        super().__init__()
        self.table, self.trained = table, trained

    def _instead(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func == _ASKED and id(args[0]) in self.trained:
            return True
        named = {name: self._replaced(value) for name, value in kwargs.items()}
        return func(*map(self._replaced, args), **named)

    def _replaced(self, value: Any) -> Any:
        if type(value) in (list, tuple):
            return type(value)(map(self._replaced, value))
        return self.table.get(id(value), value)
