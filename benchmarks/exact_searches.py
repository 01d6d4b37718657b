"""Searches that a peer's products can be put to until they are exact enough, and how exact a result is."""

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from analysis.operators import SymmetricOperator
from benchmarks import curvature_peers as peers
from benchmarks.curvature_peers import Subject

TOL = 1e-3
"""Relative residual that every search is put to."""

Solution = tuple[Tensor, Tensor, int | None]
"""Values (k,), vectors (p, k), and products where they can be counted."""


def true_residual(operator: SymmetricOperator, vectors: Tensor) -> float:
    """The largest |A v - theta v| / |theta| with theta the Rayleigh quotient, of columns (p, k)."""
    rows = torch.stack([_unit(column.to(operator.device)) for column in vectors.T])
    return max(_residual(row, image) for row, image in zip(rows, operator(rows.T).T, strict=True))


def _unit(vector: Tensor) -> Tensor:
    """In float32, of a norm taken in float64: a float32 norm of five million entries is off by a thousandth."""
    double = vector.double()
    unit: Tensor = (double / double.norm()).float()
    return unit


def _residual(row: Tensor, image: Tensor) -> float:
    row, image = row.double(), image.double()  # one pair at a time: five of GPT-2's are 5 GiB
    value = (row @ image) / row.square().sum()
    return float((image - value * row).norm() / value.abs())


def eigsh_pairs(operator: SymmetricOperator, k: int, tol: float = TOL) -> Solution:
    """SciPy's top k of an operator from one random start, at residuals that it estimates to be `tol`."""
    start = np.random.default_rng(0).standard_normal(operator.size)
    values, vectors = eigsh(operator, k, which="LA", tol=tol, ncv=max(2 * k + 1, 10), v0=start.astype(operator.dtype))
    return torch.from_numpy(values), torch.from_numpy(vectors), operator.products


def power_pairs(subject: Subject, k: int) -> Solution:
    """The top k by PyHessian's power iteration with deflation, but stopped on the residual; nothing looks further."""
    product = peers.pyhessian_operator(subject)
    values, found = torch.zeros(k), torch.zeros(0, product.size, device=product.device)
    products = 0
    for i in range(k):
        image = torch.randn(product.size, device=product.device)
        for _ in range(1000):
            v = image - found.T @ (found @ image)
            v /= v.norm()
            image, products = product(v), products + 1
            values[i] = v @ image
            if (image - values[i] * v).norm() <= TOL * abs(values[i]):
                break
        found = torch.cat([found, v[None]])
    return values, found.T, products
