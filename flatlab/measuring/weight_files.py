"""Files of weights, read as tensors and plain data, never as code: torch's, safetensors and NumPy archives."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatlab.arrays import tensor_of
from flatlab.errors import UsageError, first_line
from flatlab.runs.checkpoint import load_tensors

ADVICE = "Write the file with torch.save(model.state_dict(), FILE)."


def read_weights(path: Path) -> Any:
    """What the file holds: nested dictionaries of tensors, or a list of arrays in order.

    Raises `UsageError` for a file that cannot be read as tensors and plain data.
    """
    if path.suffix == ".safetensors" or _begins_as_safetensors(path):
        return _safetensors(path)
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
        except zipfile.BadZipFile as error:
            raise UsageError(f"{path} is damaged: {first_line(error)}.") from error
        if members and all(member.endswith(".npy") for member in members):
            return _npz(path)
    try:
        return load_tensors(path, "a saved state_dict", ADVICE)
    except UsageError as error:
        if classes := _classes(path):
            raise UsageError(
                f"{path} holds objects of the classes {', '.join(classes[:3])}, which only its own code can rebuild; "
                "nothing in it was run. Where you trust it, save its tensors alone: "
                "torch.save(checkpoint['state_dict'], FILE)."
            ) from error
        raise


def _begins_as_safetensors(path: Path) -> bool:
    """Eight bytes of length, and a JSON object."""
    try:
        with path.open("rb") as file:
            return file.read(10)[8:] == b'{"'
    except OSError:
        return False


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.") from error
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is truncated or no safetensors file: {first_line(error)}.") from error


def _npz(path: Path) -> dict[str, Tensor] | list[Tensor]:
    """The arrays by name, or in order where they have none (`arr_0`, `arr_1`, as Flower's strategies save them)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: tensor_of(archive[name]) for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"The arrays of {path} cannot be read as numbers: {first_line(error)}.") from error
    numbers = [re.fullmatch(r"arr_(\d+)", name) for name in arrays]
    if not all(numbers):
        return arrays
    order = sorted(arrays, key=lambda name: int(name.removeprefix("arr_")))
    return [arrays[name] for name in order]


def _classes(path: Path) -> list[str]:
    """The classes that a pickle asks for, found without running it."""
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # no such file at all; the caller has said so already
        return []
