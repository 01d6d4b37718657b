"""The local step that every algorithm shares, for one client or a stack of clients."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flatlab.federated.algorithms.base import Algorithm, Client, Terms, norm
from flatlab.federated.config import RunConfig

Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""theta -> (data loss f_i, gradient g of the client's loss): (P,) -> ((), (P,)), or (C, P) -> ((C,), (C, P))."""


def local_step_(
    theta: Tensor,
    gradient: Gradient,
    client: Client[Any],
    terms: Terms,
    algorithm: Algorithm,
    eta: Tensor | float,
    config: RunConfig,
    k: int | Tensor,
) -> tuple[Tensor, Client[Any]]:
    """Take step k in place; return the data loss f_i where `gradient` is first taken, and the client after it.

        g     <- gradient at theta, or at theta + ascent(theta, g), or at theta + lookahead(theta, k)
        theta <- theta - eta * rate(k) * ( clip( gradient * g + proximal * theta + constant )
                                           + (weight_decay + decay) * theta )

    theta is (P,), or (C, P) with eta, proximal and decay broadcasting as (C, 1). `gradient` returns tensors of its own,
    which are overwritten.
    """
    loss, g = gradient(theta if algorithm.lookahead is None else theta + algorithm.lookahead(client, theta, k))
    if algorithm.ascent is not None:
        ascent = algorithm.ascent(client, theta, g)
        _, g = gradient(theta + ascent)
        if algorithm.during is not None:
            client = _changed(client, algorithm.during(client, ascent), eta)
    if algorithm.rate is not None and isinstance(k, int):  # else it is part of eta
        eta = eta * algorithm.rate(client, k)
    if isinstance(terms.gradient, Tensor) or terms.gradient != 1.0:
        g.mul_(terms.gradient)
    if isinstance(terms.proximal, Tensor):
        g.addcmul_(theta, terms.proximal)
    elif terms.proximal:
        beyond = abs(terms.proximal) > torch.finfo(g.dtype).max  # which torch takes for a mistake, rather than as inf
        g.add_(theta, alpha=math.copysign(math.inf, terms.proximal) if beyond else terms.proximal)
    if terms.constant is not None:
        g.add_(terms.constant)
    shrink = (config.clip / norm(g)).clamp(max=1.0)  # |g| = 0 gives inf, hence 1
    theta.mul_(1 - eta * (config.weight_decay + terms.decay)).sub_(g.mul_(eta * shrink))
    return loss, client


def _changed(client: Client[Any], vectors: Mapping[str, Tensor], eta: Tensor | float) -> Client[Any]:
    """The client with these own vectors, but for rows of a stack that rest (one client's rate may be 0 of itself)."""
    if isinstance(eta, Tensor) and eta.dim() > 0:
        vectors = {name: torch.where(eta > 0, vector, client.own[name]) for name, vector in vectors.items()}
    return replace(client, own={**client.own, **vectors})
