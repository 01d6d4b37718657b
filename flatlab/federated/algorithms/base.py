"""What a federated algorithm is: data, and a few small functions on flat vectors, of which most need one or two.

Notation, the same in every algorithm's file (fields of `Client` and `Round` below):

    w        server model of round t, shape (P,)
    theta    a client's model while it trains; theta_K after its K local steps; Delta = theta_K - w
    w~       where the clients start, if that is not w: `start`; then Delta = theta_K - w~
    g        gradient of the client's loss f_i (with MAN, where on) at theta
    wt       wt_i = n_i N / sum_j n_j, the client's weight (1 where all N clients hold equally many samples)
    own      vectors that the client keeps between rounds, zero at first unless `initial` names them
    server   vectors that the server keeps between rounds, likewise
    mean_sel mean over the round's participants; D = mean_sel Delta

Local step k = 0, 1, ... at learning rate eta_t (clip_c scales a vector down to norm c):

    g     <- gradient at theta; or at theta + ascent(theta, g), a second pass, after which `during` may change own
             vectors; or at theta + lookahead(theta, k), the only pass
    theta <- theta - eta_t rate(k) * ( clip_c( gradient * g + proximal * theta + constant )
                                       + (weight_decay + decay) * theta )

where `Terms(constant, proximal, decay, gradient)` are fixed for the round. The functions are written for one client, on
vectors of shape (P,); since they only broadcast, they serve a stack of C clients, (C, P) with scalars as (C, 1),
unchanged; (P,) in place of (C, P) is every client's. They return new tensors, and change none that they are given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor


class Hyper(BaseModel):
    """An algorithm's hyperparameters: named, typed, bounded, with the reference values as defaults.

    Unknown names are errors, and so are values outside the range on which the method is defined. A validator must leave
    a value that it returned as it is: values are validated again when a run's files are read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, strict=True)


H = TypeVar("H", bound=Hyper)


@dataclass(frozen=True)
class Client(Generic[H]):
    """What one client (or a stack of C clients) knows when round t begins."""

    w: Tensor  # (P,), where it starts: w, or w~
    wt: Tensor  # (1,), or (C, 1)
    own: Mapping[str, Tensor]  # name: (P,), or (C, P)
    server: Mapping[str, Tensor]  # name: (P,), or as `initial` has it
    hyper: H
    K: int  # E * ceil(mean_i n_i / B), the nominal number of local steps
    eta_0: float  # learning rate of round 0
    is_weight: Tensor  # (P,) bool, false on biases and norm parameters
    t: int | Tensor = 0  # a tensor () within a step that is captured, as are eta and k of `lookahead`
    eta: float | Tensor = 0.0  # eta_t


@dataclass(frozen=True)
class Terms:
    """What a client adds to its gradient in every local step of a round."""

    constant: Tensor | None = None  # (P,), or (C, P): inside the clip
    proximal: Tensor | float = 0.0  # coefficient of theta, inside the clip; (1,), or (C, 1)
    decay: Tensor | float = 0.0  # coefficient of theta, outside the clip; (1,), or (C, 1)
    gradient: Tensor | float = 1.0  # coefficient of g, inside the clip; (1,)


@dataclass(frozen=True)
class Round(Generic[H]):
    """What the server knows when the C participants of round t have come back."""

    w: Tensor  # (P,), the server's, also where the clients start elsewhere
    theta: Tensor  # (C, P), the participants' theta_K
    samples: Tensor  # (C, 1), n_i
    wt: Tensor  # (C, 1)
    before: Mapping[str, Tensor]  # name: (C, P), the participants' own vectors as the round began
    after: Mapping[str, Tensor]  # name: (C, P), and as it ended
    server: Mapping[str, Tensor]  # name: (P,), or as `initial` has it
    hyper: H
    N: int  # number of clients, participants or not
    t: int = 0
    eta: float = 0.0  # eta_t
    K: int = 1  # the nominal number of local steps


@dataclass(frozen=True)
class Algorithm:
    """One federated algorithm. `combine` returns the next w and the server's new vectors.

    `keep` returns the client's own vectors after the round, from the client as its last step left it and Delta;
    `start` returns w~ from (w, server, hyper, t); `initial` returns, from (w_0, hyper), the vectors of client and
    server that are not zero at first, the server's in any shape; `models` returns further models to be evaluated.
    """

    name: str
    source: str
    combine: Callable[[Round[Any]], tuple[Tensor, dict[str, Tensor]]]
    hyper: type[Hyper] = Hyper
    own: tuple[str, ...] = ()
    server: tuple[str, ...] = ()
    terms: Callable[[Client[Any]], Terms] = field(default=lambda client: Terms())
    ascent: Callable[[Client[Any], Tensor, Tensor], Tensor] | None = None
    keep: Callable[[Client[Any], Tensor], dict[str, Tensor]] = field(default=lambda client, delta: {})
    during: Callable[[Client[Any], Tensor], dict[str, Tensor]] | None = None  # after each ascent: (client, ascent)
    lookahead: Callable[[Client[Any], Tensor, int | Tensor], Tensor] | None = (
        None  # instead of an ascent: (client, theta, k)
    )
    rate: Callable[[Client[Any], int], float] | None = None  # (client, k), a factor of eta_t, for all clients the same
    start: Callable[[Tensor, Mapping[str, Tensor], Any, int], Tensor] = field(default=lambda w, server, hyper, t: w)
    initial: Callable[[Tensor, Any], dict[str, Tensor]] = field(default=lambda w_0, hyper: {})  # not zero at first
    models: Callable[[Tensor, Mapping[str, Tensor]], dict[str, Tensor]] = field(default=lambda w, server: {})
    exact_steps: bool = False  # exactly K steps, over as many epochs as that takes, instead of E whole epochs
    weighted: bool = True  # the reported averages over clients weigh each by n_i
    server_differs: bool = False  # the server sends another model than the participants' average


def weighted_mean(round_: Round[Any]) -> Tensor:
    """sum_sel n_i theta_i / sum_sel n_i, shape (P,)."""
    return (round_.samples * round_.theta).sum(0) / round_.samples.sum()


LEAST_NORM = 1e-12
"""Below it a vector has no direction: the squares of a gradient that vanishes are lost in float32 before it is."""


def of_length(length: float | Tensor, vectors: Tensor) -> Tensor:
    """The vectors (..., P) scaled to that Euclidean norm; shorter, and at last zero, below `LEAST_NORM`."""
    return (length / norm(vectors).clamp_min(LEAST_NORM)) * vectors


def norm(vectors: Tensor) -> Tensor:
    """Euclidean norm over the last dimension, kept: (..., P) -> (..., 1)."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return norms
