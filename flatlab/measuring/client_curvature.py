"""What `flatlab eigs --clients` computes: the curvature of each client's own loss at the global model, and statement F.

lambda_max(H) <= sum_k p_k lambda_max(H_k),    H = sum_k p_k H_k:    flat clients make a flat whole
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from analysis.eigenvalue import Eigenvalue
from analysis.objective import loss_at
from analysis.subsets import ClientSpectra, client_spectra
from flatlab.measuring.eigs import Search, plain_eigenvalue
from flatlab.measuring.result import Result
from flatlab.measuring.subjects import Subject
from flatlab.tell import Tell, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ClientsResult(Result):
    """The top eigenvalues of each client's own loss, of all together, and statement F."""

    title: ClassVar[str] = "Top Hessian eigenvalues by client"

    loss: float  # L of all together
    spectra: ClientSpectra  # (k,) eigenvalues of all together and of each client, and both sides of F
    samples: Mapping[str, int]  # of each client, by its number
    losses: Mapping[str, float]  # of each client

    def searched(self) -> list[Eigenvalue]:
        """Those of all together, and of each client."""
        return [*self.spectra.whole, *(value for values in self.spectra.clients.values() for value in values)]

    def numbers(self) -> dict[str, Any]:
        """The eigenvalues, and both sides of F with their errors."""
        spectra = self.spectra
        return {
            "loss": self.loss,
            "global": {"eigenvalues": [plain_eigenvalue(value) for value in spectra.whole]},
            "clients": [
                {
                    "client": int(name),
                    "samples": self.samples[name],
                    "weight": spectra.weights[name],
                    "loss": self.losses[name],
                    "eigenvalues": [plain_eigenvalue(value) for value in values],
                }
                for name, values in spectra.clients.items()
            ],
            "statement_F": {
                "left": spectra.whole[0].value,
                "left_error": spectra.whole[0].residual,
                "right": spectra.mean,
                "right_error": spectra.mean_error,
                "slack": spectra.slack,
                "holds": spectra.holds,
            },
            "hvps": spectra.products,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per client and eigenvalue, all clients together first."""
        whole = ("together", sum(self.samples.values()), self.loss, self.spectra.whole)
        own = [(name, self.samples[name], self.losses[name], pairs) for name, pairs in self.spectra.clients.items()]
        return [
            {
                "client": name,
                "samples": samples,
                "loss": loss,
                "index": index,
                "eigenvalue": value.value,
                "residual": value.residual,
                "converged": value.converged,
            }
            for name, samples, loss, values in (whole, *own)
            for index, value in enumerate(values, start=1)
        ]

    def plot(self) -> "Figure":
        """The clients' top eigenvalues, from the sharpest to the flattest."""
        from figures.client_curvature import draw_client_curvature

        return draw_client_curvature([self.to_dict()]).figure


def measure_clients(subject: Subject, search: Search, tell: Tell = silent) -> ClientsResult:
    """Top eigenvalues of every client's loss, of all together, and both sides of F."""

    def show(name: str, products: int, residual: float) -> None:
        tell(f"{f'client {name}' if name else 'all clients'}: {products} products, residual {residual:.1e}")

    spectra = client_spectra(subject.clients, k=search.k, tol=search.tol, max_iter=search.max_iter, progress=show)
    point = subject.problem.point()
    return ClientsResult(
        loss=loss_at(subject.problem, point),
        spectra=spectra,
        samples={name: problem.samples for name, problem in subject.clients.items()},
        losses={name: loss_at(problem, point) for name, problem in subject.clients.items()},
    )
