"""The local step that every algorithm shares, for one client or a stack of clients."""

from collections.abc import Callable
from typing import Any

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
) -> Tensor:
    """Take one step in place and return the data loss f_i(theta) before it.

        g     <- gradient at theta, or at theta + ascent(theta, g)
        theta <- theta - eta * ( clip( g + proximal * theta + constant ) + (weight_decay + decay) * theta )

    theta is (P,), or (C, P) with eta, proximal and decay broadcasting as (C, 1). `gradient` returns tensors of its own,
    which are overwritten.
    """
    loss, g = gradient(theta)
    if algorithm.ascent is not None:
        _, g = gradient(theta + algorithm.ascent(client, theta, g))
    if isinstance(terms.proximal, Tensor):
        g.addcmul_(theta, terms.proximal)
    elif terms.proximal:
        g.add_(theta, alpha=terms.proximal)
    if terms.constant is not None:
        g.add_(terms.constant)
    shrink = (config.clip / norm(g)).clamp(max=1.0)  # |g| = 0 gives inf, hence 1
    theta.mul_(1 - eta * (config.weight_decay + terms.decay)).sub_(g.mul_(eta * shrink))
    return loss
