"""Server SWA: an average of the server's late models, beside any algorithm, which goes on as without it.

    from round t_0 on, every c rounds:   bar <- (n bar + w) / (n + 1),  n <- n + 1
    for c > 1, from t_0 on:              eta_t <- (1 - f) eta_t + f 1e-4,  f = ((t - t_0) mod c + 1) / c

so that the rates' cycles end where a model is taken. Clients still receive w; bar is evaluated and saved beside it.

Source: Caldarola et al., "Improving Generalization in Federated Learning by Seeking Flat Minima" (ECCV 2022), after
Izmailov et al. (UAI 2018). In the authors' code the copy of round t_0 is overwritten at once, so that the first model
is that of round t_0 + c, as here; their values are t_0 = 0.75 T and c = 10.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flatlab.federated.algorithms.base import Algorithm, Round

KEPT = ("swa", "swa_count")
"""The server's vectors bar and n."""

_LEAST = 1e-4  # the learning rate at the end of a cycle


def cycled(eta: float, since: int, every: int) -> float:
    """The learning rate of the round that begins `since` rounds after t_0."""
    if since < 0 or every == 1:
        return eta
    share = (since % every + 1) / every
    return (1 - share) * eta + share * _LEAST


def averaging(rules: Algorithm, first: int, every: int) -> Algorithm:
    """The algorithm with the average "swa" of the models after rounds `first` + `every`, `first` + 2 `every`, ..."""

    def combine(round_: Round[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        w, vectors = rules.combine(round_)
        bar, n = round_.server["swa"], round_.server["swa_count"]
        since = round_.t + 1 - first
        if since > 0 and since % every == 0:
            bar, n = (n * bar + w) / (n + 1), n + 1
        return w, {**vectors, "swa": bar, "swa_count": n}

    def initial(w_0: Tensor, hyper: Any) -> dict[str, Tensor]:
        return {**rules.initial(w_0, hyper), "swa_count": torch.zeros(1, dtype=w_0.dtype)}

    def models(w: Tensor, server: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The average; until there is one, w."""
        return {**rules.models(w, server), "swa": server["swa"] if server["swa_count"] > 0 else w}

    return replace(rules, combine=combine, initial=initial, models=models, server=(*rules.server, *KEPT))
