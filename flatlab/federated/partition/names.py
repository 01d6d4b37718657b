"""What a split is called in names of runs, axes of grids and tables: its kind and its parameter, as dirichlet-0.3."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from flatlab.errors import shown
from flatlab.federated.config import RunConfig
from flatlab.federated.partition import KINDS, Options
from flatlab.federated.spelling import in_words

NAMED_PARAMETERS = {option.name for option in fields(Options)}
"""Fields of a run that the name of its split tells whole: those that are numbers."""

NUMBER = r"[0-9]{1,20}(?:\.[0-9]{1,20})?(?:e-?[0-9]{1,2})?"


def partition_name(config: RunConfig) -> str:
    """Return the kind of the run's split and its parameter: "iid", "dirichlet-0.3", "classes-2", "column-writer"."""
    parameter = KINDS[config.partition].parameter
    if parameter is None:
        return config.partition
    value = getattr(config, parameter)
    return f"{config.partition}-{Path(value).stem if isinstance(value, str) else in_words(value)}"


def partition_fields(name: str) -> dict[str, Any]:
    """Return the fields that a name stands for, if its parameter is a number; raises `ValueError` for another."""
    if name in KINDS and KINDS[name].parameter is None:
        return {"partition": name}
    parts = re.fullmatch(rf"(.+?)-({NUMBER})", name)
    field = KINDS[parts[1]].parameter if parts and parts[1] in KINDS else None
    if parts and field is not None and field in NAMED_PARAMETERS:
        whole = parts[2].isdecimal() and field != "delta"
        return {"partition": parts[1], field: int(parts[2]) if whole else float(parts[2])}
    raise ValueError(
        f"a partition is iid, dirichlet-<delta>, or another kind and its number, as in classes-2, not {shown(name)}"
    )
