"""Functions that a model runs through torch.utils.checkpoint, run directly while it is measured.

What is recomputed where gradients are taken no longer finds the parameters that a measurement put in the model's place:
its second derivatives are those of other tensors, or an error. The reentrant form gives no gradient at all to
parameters of a part whose inputs need none, and refuses `torch.autograd.grad`. Recomputation saves memory and changes
no value, so that without it L is the same.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch.utils.checkpoint as torch_checkpoint

Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]

# `checkpoint` looks both up whenever it runs: models that imported it by name, or keep it in a partial, are reached.
_REENTRANT, _NONREENTRANT = torch_checkpoint.CheckpointFunction, "_checkpoint_without_reentrant_generator"

_lock = Lock()
_blocks = 0
_own: dict[str, Any] = {}


def _reentrant(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
    """What `checkpoint` returns."""
    return function(*args)


def _nothing() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), nullcontext()


def _nonreentrant(
    function: object, preserve_rng_state: bool, context_fn: Contexts = _nothing, /, *_: Any, **__: Any
) -> Iterator[None]:
    """What `checkpoint` goes through before and after it runs the function, under the context of a forward pass."""
    with context_fn()[0]:
        yield


@contextmanager
def nothing_recomputed() -> Iterator[None]:
    """Within the block torch.utils.checkpoint runs its functions directly, in whatever thread; blocks may overlap."""
    global _blocks
    with _lock:
        if not _blocks:
            _own[_NONREENTRANT] = getattr(torch_checkpoint, _NONREENTRANT)
            setattr(torch_checkpoint, _NONREENTRANT, _nonreentrant)
            # It inherits its own, which is back where this is deleted.
            setattr(_REENTRANT, "apply", staticmethod(_reentrant))  # noqa: B010  mypy lets no method be assigned
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                setattr(torch_checkpoint, _NONREENTRANT, _own.pop(_NONREENTRANT))
                del _REENTRANT.apply
