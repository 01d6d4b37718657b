"""What a federated algorithm is: data, and up to four small functions on flat vectors.

Notation, the same in every algorithm's file (fields of `Client` and `Round` below):

    w        server model of round t, shape (P,)
    theta    a client's model while it trains; theta_K after its K local steps; Delta = theta_K - w
    g        gradient of the client's loss f_i (with MAN, where on) at theta
    wt       wt_i = n_i N / sum_j n_j, the client's weight (1 where all N clients hold equally many samples)
    own      vectors that the client keeps between rounds, zero at first
    server   vectors that the server keeps between rounds, zero at first

One local step, at learning rate eta_t (clip_c scales a vector down to norm c):

    g     <- gradient at theta, or at theta + ascent(theta, g) for the SAM family
    theta <- theta - eta_t * ( clip_c( g + proximal * theta + constant ) + (weight_decay + decay) * theta )

where `Terms(constant, proximal, decay)` are fixed for the round. The functions are written for one client, on vectors
of shape (P,); since they only broadcast, they serve a stack of C clients, (C, P) with scalars as (C, 1), unchanged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor


class Hyper(BaseModel):
    """An algorithm's hyperparameters: named, typed, bounded, with the reference values as defaults.

    Unknown names are errors, and so are values outside the range on which the method is defined.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


H = TypeVar("H", bound=Hyper)


@dataclass(frozen=True)
class Client(Generic[H]):
    """What one client (or a stack of C clients) knows when round t begins."""

    w: Tensor  # (P,)
    wt: Tensor  # (1,), or (C, 1)
    own: Mapping[str, Tensor]  # name: (P,), or (C, P)
    server: Mapping[str, Tensor]  # name: (P,)
    hyper: H
    K: int  # E * ceil(mean_i n_i / B), the nominal number of local steps
    eta_0: float  # learning rate of round 0
    is_weight: Tensor  # (P,) bool, false on biases and norm parameters


@dataclass(frozen=True)
class Terms:
    """What a client adds to its gradient in every local step of a round."""

    constant: Tensor | None = None  # (P,), or (C, P): inside the clip
    proximal: Tensor | float = 0.0  # coefficient of theta, inside the clip; (1,), or (C, 1)
    decay: Tensor | float = 0.0  # coefficient of theta, outside the clip; (1,), or (C, 1)


@dataclass(frozen=True)
class Round(Generic[H]):
    """What the server knows when the C participants of round t have come back."""

    w: Tensor  # (P,)
    theta: Tensor  # (C, P), the participants' theta_K
    samples: Tensor  # (C, 1), n_i
    wt: Tensor  # (C, 1)
    before: Mapping[str, Tensor]  # name: (C, P), the participants' own vectors as the round began
    after: Mapping[str, Tensor]  # name: (C, P), and as it ended
    server: Mapping[str, Tensor]  # name: (P,)
    hyper: H
    N: int  # number of clients, participants or not


@dataclass(frozen=True)
class Algorithm:
    """One federated algorithm. `combine` returns the next w and the server's new vectors."""

    name: str
    source: str
    combine: Callable[[Round[Any]], tuple[Tensor, dict[str, Tensor]]]
    hyper: type[Hyper] = Hyper
    own: tuple[str, ...] = ()
    server: tuple[str, ...] = ()
    terms: Callable[[Client[Any]], Terms] = field(default=lambda client: Terms())
    ascent: Callable[[Client[Any], Tensor, Tensor], Tensor] | None = None
    keep: Callable[[Client[Any], Tensor], dict[str, Tensor]] = field(default=lambda client, delta: {})
    exact_steps: bool = False  # exactly K steps, over as many epochs as that takes, instead of E whole epochs
    weighted: bool = True  # the reported averages over clients weigh each by n_i
    server_differs: bool = False  # the server sends another model than the participants' average


def weighted_mean(round_: Round[Any]) -> Tensor:
    """sum_sel n_i theta_i / sum_sel n_i, shape (P,)."""
    return (round_.samples * round_.theta).sum(0) / round_.samples.sum()


def norm(vectors: Tensor) -> Tensor:
    """Euclidean norm over the last dimension, kept: (..., P) -> (..., 1)."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return norms
