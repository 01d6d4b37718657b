"""How much the subspaces of eigenvectors have in common."""

import torch
from torch import Tensor

from analysis.errors import MeasurementError


def principal_angles(one: Tensor, other: Tensor) -> Tensor:
    """Angles between the spans of orthonormal columns (p, k) and (p, m), ascending, (min(k, m),) float64, in radians.

    Björck and Golub, "Numerical Methods for Computing Angles Between Linear Subspaces" (1973): sines are taken where
    angles are small, since a cosine near 1 has lost them. Raises `MeasurementError` for columns of unlike length.

    >>> import torch
    >>> from analysis.subspaces import principal_angles
    >>> axes = torch.eye(3)
    >>> principal_angles(axes[:, :2], axes[:, 1:]).rad2deg().tolist()
    [0.0, 90.0]
    """
    if one.shape[0] != other.shape[0]:
        raise MeasurementError(f"Vectors of {one.shape[0]} and of {other.shape[0]} entries span no common space.")
    Q, R = (x.double() for x in (one, other))
    if Q.shape[1] < R.shape[1]:
        Q, R = R, Q
    overlap = Q.T @ R
    cosines = torch.linalg.svdvals(overlap).clamp(max=1.0)
    sines = torch.linalg.svdvals(R - Q @ overlap).clamp(max=1.0).flip(0)
    return torch.where(cosines**2 > 0.5, sines.asin(), cosines.acos())


def dissimilarity(one: Tensor, other: Tensor) -> float:
    """1 - mean cos^2 of the principal angles: 0 for one subspace in the other, 1 for orthogonal ones.

    >>> import torch
    >>> from analysis.subspaces import dissimilarity
    >>> axes = torch.eye(3)
    >>> dissimilarity(axes[:, :2], axes[:, :2]), dissimilarity(axes[:, :1], axes[:, 1:2])
    (0.0, 1.0)
    """
    return 1 - float(principal_angles(one, other).cos().square().mean())
