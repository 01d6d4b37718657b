"""The two factors of a layer's block, sample by sample: the patches U~_n of its input, the curvature B_n at its output.

    H_ll = 1/N sum_n (U~_n (x) I)^T B_n (U~_n (x) I)

U~_n has one row per output position, the patch seen there, and a last column of ones where there is a bias; in a fully
connected layer it is the one row a~_n.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.layers import Layer

_MOST_STEPS = 60
_APART = 0.1  # of the values: where uppers may lie above them
_HALVINGS = 30  # of the interval in which an upper end is sought
_USED_UP = 1e-12  # of the norm of B_n: what is left of a vector that has no new direction


def has_patches(layer: Layer) -> bool:
    """Whether `patches` knows the layer: Linear, or Conv2d without groups and with zero padding given by number."""
    module = layer.module
    if "weight" not in layer.parameters:
        return False
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def patches(layer: Layer, inputs: Tensor) -> Tensor:
    """U~ of every sample, (n, P, D), from the layer's inputs (n, ...)."""
    module = layer.module
    if isinstance(module, nn.Conv2d):
        windows = F.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]
        rows = windows.mT
    else:
        rows = inputs.reshape(len(inputs), -1, inputs.shape[-1])
    if "bias" in layer.parameters:
        rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)
    return rows


def at_positions(module: nn.Module, s: Tensor) -> Tensor:
    """Lay the module's outputs (n, ...) out as (n, P, d_out)."""
    return s.flatten(2).mT if isinstance(module, nn.Conv2d) else s.reshape(len(s), -1, s.shape[-1])


def as_outputs(module: nn.Module, rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `at_positions`, in the shape of `like` (n, ...)."""
    return (rows.mT if isinstance(module, nn.Conv2d) else rows).reshape(like.shape)


def squared_norms(rows: Tensor) -> tuple[Tensor, Tensor]:
    """|U~_n|_2^2 and |U~_n|_F^2 of every sample, (n,) each; equal in a fully connected layer."""
    frobenius = rows.square().sum((1, 2))
    if rows.shape[1] == 1:
        return frobenius, frobenius
    gram = rows @ rows.mT if rows.shape[1] <= rows.shape[2] else rows.mT @ rows
    return torch.linalg.eigvalsh(gram)[:, -1], frobenius


@dataclass(frozen=True)
class TopCurvatures:
    """max(lambda_max(B_n), 0) of every sample."""

    values: Tensor  # (n,), Ritz values: the eigenvalue is not below
    uppers: Tensor  # (n,): nor above, each but with the probability `chance`
    steps: int


def top_curvatures(
    curve: Callable[[Tensor], Tensor], like: Tensor, weights: Tensor, tol: float, chance: float
) -> TopCurvatures:
    """The largest eigenvalue of every B_n by Lanczos, all samples side by side, reorthogonalised.

    `curve` maps u (n, ...), of the shape of `like`, to B_n u_n. Stops where the residuals' sum, weighted by `weights`
    (n,), is at most `tol` of the values', and uppers are within `_APART` of them. A sample whose Krylov space is used
    up goes on with zeros, which can only add the eigenvalue zero. Uppers presume nothing converged: they follow from
    the start's being standard normal (see `analysis.overlooked`).
    """
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(len(like), like[0].numel(), dtype=torch.float64, generator=generator).to(like)
    log_lengths = q.norm(dim=1).log()
    q = q / q.norm(dim=1, keepdim=True)
    Q, T, beta = q.new_zeros(len(q), 0, q.shape[1]), q.new_zeros(len(q), 0, 0), q.new_zeros(len(q))
    while True:
        Q, T = torch.cat([Q, q[:, None]], dim=1), F.pad(T, (0, 1, 0, 1))
        w = curve(q.reshape(like.shape)).reshape(q.shape)
        T[:, -1, -1] = (q * w).sum(1)
        if len(T[0]) > 1:
            T[:, -1, -2] = T[:, -2, -1] = beta
        for _ in range(2):
            w = w - ((Q @ w[:, :, None]).mT @ Q)[:, 0]
        values, vectors = torch.linalg.eigh(T)
        beta = w.norm(dim=1)
        beta = torch.where(beta > _USED_UP * values.abs().amax(1), beta, 0.0)
        log_lengths = log_lengths + beta.log()
        tops, errors = values[:, -1].clamp(min=0), beta * vectors[:, -1, -1].abs()
        last = len(T[0]) >= min(q.shape[1], _MOST_STEPS)
        if last or weights @ errors <= tol * (weights @ tops):
            uppers = _upper_ends(values, log_lengths - math.log(chance * math.sqrt(math.pi / 2))).clamp(min=0)
            near = weights @ uppers <= (1 + _APART) * (weights @ tops) and uppers.max() <= (1 + _APART) * tops.max()
            if last or near:
                return TopCurvatures(tops, uppers, len(T[0]))
        q = torch.where(beta > 0, 1 / beta, 0.0)[:, None] * w


def _upper_ends(ritz: Tensor, logs: Tensor) -> Tensor:
    """The x (n,) above the last of the ascending `ritz` (n, m) at which sum_i log(x - ritz_i) comes up to `logs` (n,).

    With the logarithm of |prod_i (B - ritz_i) z| / epsilon that is where an eigenvalue e would have |e . z| < epsilon.
    """
    low = ritz[:, -1]
    high = low + (logs / ritz.shape[1]).exp()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        short = (middle[:, None] - ritz).log().sum(1) < logs
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return high
