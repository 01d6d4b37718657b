"""Random numbers that a GPU makes itself, from their places: with one CUDA version the same on every GPU.

The ranks of a data-parallel run must multiply the same vectors, and torch's own generators give other numbers on
another kind of GPU. Number n is made of the words 2 n and 2 n + 1 of splitmix64 (Steele, Lea and Flood 2014) by Box and
Muller's transform (1958).
"""

import math

import torch
from torch import Tensor

_INCREMENT = -7046029254386353131  # 2^64 / golden ratio as a signed integer
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685
_AT_ONCE = 1 << 24  # numbers, for which a dozen words each are held


def normal_numbers(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal (count,) of the type and on the device of `like`; the (CPU) generator gives the seed."""
    seed = int(torch.randint(1 << 62, (), generator=generator))
    numbers = like.new_empty(count)
    for start in range(0, count, _AT_ONCE):
        places = torch.arange(start, min(start + _AT_ONCE, count), device=like.device)
        radius = (-2 * uniform(seed, 2 * places).log()).sqrt()
        numbers[start : start + _AT_ONCE] = radius * (2 * math.pi * uniform(seed, 2 * places + 1)).cos()
    return numbers


def uniform(seed: int, places: Tensor) -> Tensor:
    """Numbers in (0, 1], float64, of which 53 bits are random: (n,) places -> (n,)."""
    words = mixed(seed + places * _INCREMENT)
    return (_shifted(words, 11).double() + 0.5) * 2.0**-53


def mixed(h: Tensor) -> Tensor:
    """Every bit of the result depends on all bits, and no two words become one (the finaliser of splitmix64)."""
    h = (h ^ _shifted(h, 30)) * _FIRST
    h = (h ^ _shifted(h, 27)) * _SECOND
    return h ^ _shifted(h, 31)


def _shifted(h: Tensor, bits: int) -> Tensor:
    """Signed words shifted right as if they had no sign."""
    return (h >> bits) & ((1 << (64 - bits)) - 1)
