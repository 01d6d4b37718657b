"""Training has diverged where a loss, a model or a vector is no longer finite; that ends the run before it is kept."""

from collections.abc import Mapping, Sequence
from math import isfinite

from torch import Tensor

from flatlab.errors import FlatlabError
from flatlab.federated.engine.base import RoundOutputs

_KEPT = "the last good state is kept. Lower the learning rate (--lr), or the coefficient of MAN or of the algorithm."


def require_finite_clients(t: int, ids: Sequence[int], outputs: RoundOutputs) -> None:
    """Raise `FlatlabError` unless losses, models and own vectors of the participants `ids` of round t are finite."""
    finite = outputs.theta.isfinite().all(dim=1).tolist()
    for k, loss, whole in zip(ids, outputs.losses, finite, strict=True):
        if not isfinite(loss) or not whole:
            raise FlatlabError(f"Training diverged in round {t + 1} at client {k} (its loss is {loss:.4g}); {_KEPT}")
    for name, rows in outputs.after.items():
        for k, whole in zip(ids, rows.isfinite().all(dim=1).tolist(), strict=True):
            if not whole:
                raise FlatlabError(
                    f"Training diverged in round {t + 1} at client {k} (its vector {name} is not finite); {_KEPT}"
                )


def require_finite_server(t: int, models: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> None:
    """Raise `FlatlabError` unless the models and the server's vectors after round t are finite."""
    for kind, tensors in (("model", models), ("vector", vectors)):
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise FlatlabError(
                    f"Training diverged in round {t + 1} at the server (the {kind} {name} is not finite); {_KEPT}"
                )
