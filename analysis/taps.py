"""What an activation is: the result of a nonlinearity, found while the model runs.

It does not matter whether the model calls `nn.ReLU`, `F.relu` or `x.relu()`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

NONLINEARITIES = frozenset(
    name + suffix
    for name in (
        "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish",
        "hardswish", "hardtanh", "tanh", "sigmoid", "softplus", "softsign", "logsigmoid",
    )
    for suffix in ("", "_")
)  # fmt: skip
"""Names of the torch functions whose results count as activations (softmax is not one: it makes attention weights)."""


class _Tap(TorchFunctionMode):
    """Hands the result of every nonlinearity to `tap` and lets the model go on with what `tap` returns."""

    def __init__(self, tap: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.tap = tap

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        return self.tap(result) if getattr(func, "__name__", "") in NONLINEARITIES else result


@contextmanager
def tap_activations(tap: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, pass every activation, in the order computed, through `tap`, which returns it or a substitute.

    An activation has shape (batch, ...) and the model's dtype. The last one may be the model's output (logits) in
    models that end with a nonlinearity; the caller tells by identity.
    """
    with _Tap(tap):
        yield
