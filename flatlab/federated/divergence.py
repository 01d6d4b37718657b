"""Training has diverged where a loss, a model or a vector is no longer finite; that ends the run before it is kept."""

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

from flatlab.errors import FlatlabError
from flatlab.federated.engine.base import RoundOutputs

_KEPT = "the last good state is kept. Lower the learning rate (--lr), or the coefficient of MAN or of the algorithm."


def require_finite_clients(t: int, ids: Sequence[int], outputs: RoundOutputs) -> None:
    """Raise `FlatlabError` unless losses, models and own vectors of the participants `ids` of round t are finite."""
    names = [*outputs.after]
    parts = (outputs.theta, *outputs.after.values())
    found = torch.stack([rows.isfinite().all(dim=1) for rows in parts]).tolist()  # a device is asked once
    for k, loss, whole in zip(ids, outputs.losses, found[0], strict=True):
        if not isfinite(loss) or not whole:
            raise FlatlabError(f"Training diverged in round {t + 1} at client {k} (its loss is {loss:.4g}); {_KEPT}")
    for name, row in zip(names, found[1:], strict=True):
        for k, whole in zip(ids, row, strict=True):
            if not whole:
                raise FlatlabError(
                    f"Training diverged in round {t + 1} at client {k} (its vector {name} is not finite); {_KEPT}"
                )


def require_finite_server(t: int, models: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> None:
    """Raise `FlatlabError` unless the models and the server's vectors after round t are finite."""
    names = [*(f"model {name}" for name in models), *(f"vector {name}" for name in vectors)]
    found = torch.stack([tensor.isfinite().all() for tensor in (*models.values(), *vectors.values())]).tolist()
    for name, whole in zip(names, found, strict=True):
        if not whole:
            raise FlatlabError(f"Training diverged in round {t + 1} at the server (the {name} is not finite); {_KEPT}")
