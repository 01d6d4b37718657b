"""Casts to float32 in what is computed in float64.

Models raise activations to float32 (norms, softmax, logits before a loss), because they may be given in half precision.
Of a float64 activation the same cast takes half of the digits, and no residual shows it: what is said to be exact to
float64 would be exact to float32. So it is where a model writes into `torch.zeros(...)`, of torch's default type.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from analysis.function_mode import FunctionMode


@contextmanager
def widened(dtype: torch.dtype) -> Iterator[None]:
    """Within the block, `dtype` is torch's default, and where it is float64, so is float32 that is asked for.

    What models cast still has one type.
    """
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with _Widened() if dtype == torch.float64 else nullcontext():
            yield
    finally:
        torch.set_default_dtype(usual)


class _Widened(FunctionMode):
    def _instead(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        named = dict(kwargs)
        if func is Tensor.float:
            return Tensor.double(*args, **named)
        if func is Tensor.view:  # there a type says how bits are read
            return func(*args, **named)
        return func(*map(_widened, args), **{name: _widened(value) for name, value in named.items()})


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
