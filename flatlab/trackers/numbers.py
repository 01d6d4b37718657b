"""What of a round's record, and of a measurement, goes to trackers: tags and numbers."""

from collections.abc import Iterable, Mapping
from typing import Any

from flatlab.runs.metrics import Record

SCALARS = {
    "train/loss": "train_loss",
    "train/learning_rate": "lr",
    "train/images_per_second": "images_per_second",
    "test/accuracy": "test_accuracy",
    "test/loss": "test_loss",
    "activation/norm2": "activation_norm",
}
"""Tag: field of the record."""


def of_round(record: Record, reported: str) -> dict[str, float]:
    """The numbers of a round; of the model that the run has `reported` the activation norms of each hidden layer."""
    numbers = {tag: record[name] for tag, name in SCALARS.items() if name in record}
    models: Mapping[str, Any] = record.get("models", {})
    numbers |= {f"test/accuracy_{name}": result["accuracy"] for name, result in models.items()}
    if reported in models:
        norms = models[reported]["activation_norms"]
        numbers |= {f"activation/norm2_layer{i}": norm for i, norm in enumerate(norms, start=1)}
    if "curvature" in record:
        numbers |= _eigenvalues("", record["curvature"]["global"], record["curvature"]["layers"].items())
    return numbers


def of_measurement(kind: str, content: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of what `eigs` or `trace` measured, of the network and of each layer; of other kinds none."""
    if kind == "eigs":
        layers = content["layers"]
        numbers = _eigenvalues(
            "measured/",
            content["global"]["eigenvalues"][0],
            [(layer["name"], layer["eigenvalues"][0]) for layer in layers],
        )
        for norm in ("input_norm2", "output_norm2"):
            numbers |= {f"measured/{norm}/{layer['name']}": layer[norm] for layer in layers if layer[norm] is not None}
        return numbers
    if kind == "trace":
        return {"measured/trace": content["trace"]["value"], "measured/trace_error": content["trace"]["standard_error"]}
    return {}


def _eigenvalues(
    prefix: str, network: Mapping[str, Any], layers: Iterable[tuple[str, Mapping[str, Any]]]
) -> dict[str, float]:
    return {
        f"{prefix}{'eigenvalue' if entry['converged'] else 'eigenvalue_not_converged'}/{name}": entry["value"]
        for name, entry in [("network", network), *layers]
    }
