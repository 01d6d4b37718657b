"""What the figures of `eigs`, `trace`, `density` and `surface` say of the subjects they compare."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Saved = Mapping[str, Any]
"""What one of the commands wrote of one subject."""


def subject_name(saved: Saved) -> str:
    """The checkpoint's path, or the function that makes a user's own model."""
    return str(saved.get("checkpoint", saved.get("model")))


def subject_labels(saved: Sequence[Saved]) -> list[str]:
    """Short names for a legend: a run's folder, the checkpoint's name where it is not the final one, the function."""
    labels = [_label(one) for one in saved]
    return labels if len(set(labels)) == len(labels) else [subject_name(one) for one in saved]


def _label(saved: Saved) -> str:
    if "checkpoint" not in saved:
        return subject_name(saved)
    path = Path(saved["checkpoint"])
    parts = (path.parent.name, "" if path.stem == "final" else path.stem)
    return "/".join(part for part in parts if part) or path.stem


MATRICES = {
    "hessian": "Hessian",
    "gauss-newton": "Gauss-Newton matrix",
    "fisher": "Fisher matrix",
    "empirical-fisher": "empirical Fisher matrix",
}
"""How the matrices that are measured are called in print."""


def matrix_name(saved: Saved) -> str:
    """The matrix whose eigenvalues or trace were measured; the Hessian where the settings do not say."""
    return MATRICES[saved.get("settings", {}).get("matrix", "hessian")]


def setting(saved: Saved) -> str:
    """Data set and samples, as a title."""
    data = saved["data"]
    kind = "training samples" if data["split"] == "train" else "samples"
    return f"{data['dataset']}, {data['samples']:,} {kind}"


def origin(saved: Sequence[Saved]) -> dict[str, str]:
    """Where the plotted numbers come from, for the metadata of the picture."""
    return {
        **saved[0]["versions"],
        "subjects": " ".join(subject_name(one) for one in saved),
        "data": setting(saved[0]),
    }
