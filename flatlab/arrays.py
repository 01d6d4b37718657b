"""Arrays of NumPy as tensors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensor_of(array: "np.ndarray[Any, Any]") -> Tensor:
    """The array as a tensor, which torch makes of writable arrays in this machine's byte order alone.

    Raises `TypeError` where its elements are no numbers, or of a kind that torch has not.
    """
    return torch.from_numpy(np.require(array, dtype=array.dtype.newbyteorder("="), requirements=["C", "W"]))
