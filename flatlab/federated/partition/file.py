"""A split in a JSON file: which training samples each client has, and of which data.

    {"format": "flatlab split", "version": 1, "data": "5f0c...", "samples": 1438, "clients": {"0": [3, 17, ...], ...}}

Only `clients` must be there; `data` is the digest of the training samples, with which it is compared. Every sample is
in just one client. Clients named 0, 1, ... to their number are those, in whatever order they stand; others are numbered
as they stand in the file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from flatlab.data import Split
from flatlab.errors import UsageError, shown
from flatlab.federated.partition.task import Indices
from flatlab.files import write_text
from flatlab.runs.fingerprint import training_digest

FORMAT = "flatlab split"
VERSION = 1
FIELDS = ("format", "version", "data", "samples", "clients")


def write_split(path: Path, train: Split, parts: Sequence[Indices]) -> None:
    """Write which samples of `train` each client has, atomically."""
    plain = {
        "format": FORMAT,
        "version": VERSION,
        "data": training_digest(train),
        "samples": len(train),
        "clients": {str(client): part.tolist() for client, part in enumerate(parts)},
    }
    write_text(path, json.dumps(plain))


def read_split(path: Path, train: Split) -> Indices:
    """The client of each sample of `train`, (n,), by its number (see the module).

    Raises:
        UsageError: the file cannot be read, is not such a file, is of other data, or has a sample not just once.
    """
    plain = _read(path)
    for field in plain:
        if field not in FIELDS:
            _refuse(path, f"has the field {shown(field)}; its fields are {', '.join(FIELDS)}")
    if plain.get("format", FORMAT) != FORMAT:
        _refuse(path, f"has the format {shown(plain['format'])}, not {FORMAT!r}")
    if type(plain.get("version", VERSION)) is not int or plain.get("version", VERSION) != VERSION:
        _refuse(path, f"has the version {shown(plain['version'])}; this flatlab reads {VERSION}")
    if "samples" in plain and (type(plain["samples"]) is not int or plain["samples"] != len(train)):
        _refuse(path, f"divides {shown(plain['samples'])} samples, but the training set has {len(train)}")
    if "data" in plain and plain["data"] != training_digest(train):
        _refuse(path, f"is of other data: its digest is {shown(plain['data'])}, not {training_digest(train)!r}")
    clients = plain.get("clients")
    if not isinstance(clients, dict) or not clients:
        _refuse(path, f"has as its clients {shown(clients)}, not a table of lists")
    return _owners(path, clients, len(train))


def _owners(path: Path, clients: dict[str, Any], samples: int) -> Indices:
    owners = np.full(samples, -1, dtype=np.int64)
    names = list(clients)
    numbers = {str(number): number for number in range(len(names))}
    if set(names) != set(numbers):
        numbers = {name: number for number, name in enumerate(names)}
    names.sort(key=numbers.__getitem__)
    for name, held in clients.items():
        if not isinstance(held, list) or not held:
            _refuse(path, f"has for client {shown(name)} {shown(held)}, not a list of samples")
        for place, sample in enumerate(held):
            if type(sample) is not int or not 0 <= sample < samples:
                _refuse(
                    path,
                    f"has for client {shown(name)}, at place {place}, {shown(sample)}, "
                    f"not a sample from 0 to {samples - 1}",
                )
            if owners[sample] >= 0:
                _refuse(
                    path, f"has sample {sample} in client {shown(names[owners[sample]])} and again in {shown(name)}"
                )
            owners[sample] = numbers[name]
    if (owners < 0).any():
        _refuse(path, f"gives sample {int(np.argmin(owners))} to no client")
    return owners


def _read(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_bytes(), object_pairs_hook=lambda pairs: _table(path, pairs))
    except OSError as error:
        raise UsageError(f"Cannot read the split {path}: {error.strerror or error}.") from error
    except UsageError:
        raise
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, numbers of thousands of digits, too deep
        raise UsageError(f"The split {path} is not valid JSON: {error}.") from error
    if not isinstance(plain, dict):
        _refuse(path, f"is {shown(plain)}, not a table")
    return plain


def _table(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            _refuse(path, f"has {shown(key)} twice")
        table[key] = value
    return table


def _refuse(path: Path, what: str) -> NoReturn:
    raise UsageError(f"The split {path} {what}: make it agree.")
