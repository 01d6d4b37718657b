"""Eigenvectors in a safetensors file: what `flatlab eigs --vectors` writes, and reads back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flatlab.errors import UsageError
from flatlab.files import atomic_write, finite

_FORMAT = "flatlab eigenvectors"


@dataclass(frozen=True, eq=False)
class Eigenvectors:
    """k eigenvectors of the whole network, unit vectors in all parameters together, with how exact they are."""

    parameters: Mapping[str, Tensor]  # by name in the model's order, (k, *shape): a row per eigenvector
    eigenvalues: Tensor  # (k,) float64
    residuals: Tensor  # (k,) float64, |Hv - lambda v|
    converged: Sequence[bool]
    about: Mapping[str, Any]  # of what: checkpoint or model, data, loss, fingerprint, settings

    @property
    def vectors(self) -> Tensor:
        """(P, k), as `flatlab.eigs` returns them."""
        return torch.cat([tensor.reshape(len(tensor), -1) for tensor in self.parameters.values()], dim=1).T


def write_vectors(
    path: Path,
    vectors: Tensor,
    shapes: Mapping[str, tuple[int, ...]],
    pairs: Sequence[tuple[float, float, bool]],
    about: Mapping[str, Any],
) -> None:
    """Write columns (P, k), cut into parameters of these `shapes`, and their values, residuals and convergence.

    Complex parameters are pairs of real numbers, (..., 2). Raises `WriteError`.
    """
    pieces = vectors.T.cpu().split([torch.Size(shape).numel() for shape in shapes.values()], dim=1)
    tensors = {
        name: piece.reshape(len(piece), *shape).contiguous()
        for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }
    metadata = {
        "format": _FORMAT,
        "parameters": json.dumps(list(shapes)),
        "eigenvalues": json.dumps([value for value, _, _ in pairs]),
        "residuals": json.dumps([residual for _, residual, _ in pairs]),
        "converged": json.dumps([converged for _, _, converged in pairs]),
        "fingerprint": json.dumps(about.get("fingerprint")),
        "about": json.dumps(finite(about)),
    }
    with atomic_write(path) as file:
        file.write(save(tensors, metadata))


def load_vectors(path: str | Path) -> Eigenvectors:
    """Read what `flatlab eigs --vectors` or `EigsResult.save_vectors` wrote.

    Raises `UsageError` for a file that is none.

    >>> import flatlab
    >>> flatlab.eigs("runs/a", top_k=2, samples=100).save_vectors("vectors.safetensors")
    >>> saved = flatlab.load_vectors("vectors.safetensors")
    >>> tuple(saved.parameters["fc3.bias"].shape), tuple(saved.vectors.shape)
    ((2, 10), (6570, 2))
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise UsageError(f"{path} holds no eigenvectors: write some with flatlab eigs --vectors.")
            known = {name: json.loads(text) for name, text in metadata.items() if name != "format"}
            return Eigenvectors(
                parameters={name: file.get_tensor(name) for name in known["parameters"]},
                eigenvalues=torch.tensor(known["eigenvalues"], dtype=torch.float64),
                residuals=torch.tensor(known["residuals"], dtype=torch.float64),
                converged=known["converged"],
                about=known["about"],
            )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is truncated or no file of eigenvectors: write it anew.") from error
