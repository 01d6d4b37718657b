"""What `flatlab clients` computes: curvature of clients' losses and the global one, at their models and at the global.

With w the global model, theta_k client k's after its local steps, L_k its loss, L that of all training samples, and
sigma a top eigenvalue or a trace of the Hessian:

    discrepancy   sigma(L, w) - mean_k sigma(L_k, theta_k)     what is lost between the clients' minima and the whole's
    transfer      mean_k sigma(L, theta_k) - mean_k sigma(L_k, theta_k)   the part of it that the data make
    distance      mean_k |theta_k - w|                         how far apart the models are

Lee and Yoon (ICML 2024) call by "flatness discrepancy", and Liu et al. (arXiv 2602.23827) by "flatness distance", that
flatness at the clients does not carry over to the global model. The names are theirs, the definitions above ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, islice
from statistics import mean
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from analysis.eigenvalue import Eigenvalue, listed
from analysis.lanczos import lanczos
from analysis.objective import loss_at
from analysis.operators import hessian
from analysis.problem import Problem
from analysis.subspaces import dissimilarity
from analysis.trace import Estimate, hutchinson
from flatlab.measuring.eigs import Search, plain_eigenvalue
from flatlab.measuring.result import Result
from flatlab.measuring.subjects import Subject, without_clients
from flatlab.measuring.trace import Probing
from flatlab.tell import Tell, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLACES = ("own_at_own", "whole_at_own", "own_at_global")
"""A client's loss or the global one, at the client's model or at the global one."""


@dataclass(frozen=True)
class Curvature:
    """One loss at one model."""

    loss: float
    eigenvalues: tuple[Eigenvalue, ...]  # top k
    trace: Estimate
    trace_converged: bool
    trace_rounded: bool  # it would have converged but for rounding
    vectors: Tensor  # (p, k)

    def plain(self) -> dict[str, Any]:
        """As plain data, without the vectors."""
        return {
            "loss": self.loss,
            "eigenvalues": [plain_eigenvalue(value) for value in self.eigenvalues],
            "trace": {**vars(self.trace), "converged": self.trace_converged, "rounded": self.trace_rounded},
        }


@dataclass(frozen=True)
class ClientCurvature:
    """One client."""

    samples: int
    distance: float  # |theta_k - w|
    places: Mapping[str, Curvature]  # by `PLACES`


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LocalGlobalResult(Result):
    """Curvature of the clients' losses and of the global one, at the clients' models and at the global one."""

    title: ClassVar[str] = "Local against global curvature"

    whole: Curvature  # the global loss at the global model
    clients: Mapping[str, ClientCurvature]  # by number

    def means(self) -> dict[str, dict[str, float]]:
        """Of eigenvalue and trace: the means over clients, discrepancy and transfer."""
        numbers = {}
        for what in ("eigenvalue", "trace"):
            by_place = {place: mean(_number(c.places[place], what) for c in self.clients.values()) for place in PLACES}
            whole = _number(self.whole, what)
            numbers[what] = {
                "whole_at_global": whole,
                **by_place,
                "discrepancy": whole - by_place["own_at_own"],
                "transfer": by_place["whole_at_own"] - by_place["own_at_own"],
            }
        return numbers

    def dissimilarities(self) -> dict[str, float] | None:
        """1 - mean cos^2 of the principal angles between clients' top eigenspaces, mean over pairs; None for one."""
        pairs = list(combinations(self.clients.values(), 2))
        if not pairs:
            return None
        return {
            place: mean(dissimilarity(a.places[place].vectors, b.places[place].vectors) for a, b in pairs)
            for place in PLACES
        }

    @property
    def finished(self) -> bool:
        """Of eigenvalues and traces."""
        return super().finished and all(
            curvature.trace_converged or curvature.trace_rounded for curvature in self._curvatures()
        )

    def searched(self) -> list[Eigenvalue]:
        """Those of every loss at every model."""
        return [value for curvature in self._curvatures() for value in curvature.eigenvalues]

    def _curvatures(self) -> list[Curvature]:
        return [self.whole, *(curvature for client in self.clients.values() for curvature in client.places.values())]

    def numbers(self) -> dict[str, Any]:
        """Every curvature, the distances, the means over clients and what follows from them."""
        return {
            "global": self.whole.plain(),
            "clients": [
                {
                    "client": int(name),
                    "samples": client.samples,
                    "distance": client.distance,
                    **{place: curvature.plain() for place, curvature in client.places.items()},
                }
                for name, client in self.clients.items()
            ],
            "means": self.means(),
            "distance": mean(client.distance for client in self.clients.values()),
            "dissimilarity": self.dissimilarities(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per client and place, the global loss at the global model first."""
        all_ = [("all", "whole_at_global", 0.0, self.whole)]
        all_ += [(name, p, c.distance, c.places[p]) for name, c in self.clients.items() for p in PLACES]
        return [
            {
                "client": name,
                "place": place,
                "distance": distance,
                "loss": curvature.loss,
                "eigenvalue": curvature.eigenvalues[0].value,
                "residual": curvature.eigenvalues[0].residual,
                "converged": curvature.eigenvalues[0].converged,
                "trace": curvature.trace.value,
                "trace_error": curvature.trace.standard_error,
            }
            for name, place, distance, curvature in all_
        ]

    def plot(self) -> "Figure":
        """Each client's curvature, its own loss against the global one."""
        from figures.local_global import draw_local_global

        return draw_local_global([self.to_dict()]).figure


def local_settings(search: Search, probing: Probing, most: int | None = None) -> dict[str, Any]:
    """What is kept of how it was measured."""
    some = {} if most is None else {"clients": most}
    return {"top_k": search.k, "tol": search.tol, "max_iter": search.max_iter, "trace_tol": probing.tol, **some}


def measure_local_global(
    subject: Subject, search: Search, probing: Probing, tell: Tell = silent, most: int | None = None
) -> LocalGlobalResult:
    """Top eigenvalues and traces at the models of the clients that the checkpoint keeps and at the global one.

    Of these clients the first `most` by number are measured (None: all of them).
    Raises `UsageError` for a checkpoint without clients' models.
    """
    if not subject.own_models:
        raise without_clients(subject.about["checkpoint"])

    def curvature(problem: Problem, what: str) -> Curvature:
        told = lambda products, residual: tell(f"{what}: {products} products, residual {residual:.1e}")  # noqa: E731
        matrix = hessian(problem)
        pairs = lanczos(matrix, search.k, tol=search.tol, max_iter=search.max_iter, progress=told)
        moments = hutchinson(
            matrix,
            tol=probing.tol,
            max_probes=probing.max_probes,
            progress=lambda probes, error: tell(f"{what}: {probes} probes, standard error {error:.1%}"),
        )
        at = loss_at(problem, problem.point())
        return Curvature(
            at,
            listed(pairs),
            moments.trace,
            moments.converged,
            moments.rounded,
            pairs.vectors,
        )

    w = subject.problem.point()
    clients = {}
    for name, state in islice(subject.own_models.items(), most):
        own = subject.clients[name]
        clients[name] = ClientCurvature(
            samples=own.samples,
            distance=float(torch.linalg.vector_norm((own.moved_to(state).point() - w).double())),
            places={
                "own_at_own": curvature(own.moved_to(state), f"client {name}, its loss at its model"),
                "whole_at_own": curvature(subject.problem.moved_to(state), f"global loss at client {name}'s model"),
                "own_at_global": curvature(own, f"client {name}, its loss at the global model"),
            },
        )
    return LocalGlobalResult(whole=curvature(subject.problem, "global loss and model"), clients=clients)


def _number(curvature: Curvature, what: str) -> float:
    return curvature.eigenvalues[0].value if what == "eigenvalue" else curvature.trace.value
