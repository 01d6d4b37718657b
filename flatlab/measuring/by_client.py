"""What `flatlab eigs --clients` computes: the curvature of each client's own loss at the global model, and statement F.

lambda_max(H) <= sum_k p_k lambda_max(H_k),    H = sum_k p_k H_k:    flat clients make a flat whole
"""

from typing import Any

from analysis.objective import loss_at
from analysis.subsets import client_spectra
from flatlab.measuring.eigs import Search, plain_eigenvalue
from flatlab.measuring.subjects import Subject
from flatlab.tell import Tell, silent


def clients_numbers(subject: Subject, search: Search, tell: Tell = silent) -> dict[str, Any]:
    """Top eigenvalues of every client's loss, of all together, and both sides of F."""

    def show(name: str, products: int, residual: float) -> None:
        tell(f"{f'client {name}' if name else 'all clients'}: {products} products, residual {residual:.1e}")

    spectra = client_spectra(subject.clients, k=search.k, tol=search.tol, max_iter=search.max_iter, progress=show)
    point = subject.problem.point()
    return {
        "loss": loss_at(subject.problem, point),
        "global": {"eigenvalues": [plain_eigenvalue(value) for value in spectra.whole]},
        "clients": [
            {
                "client": int(name),
                "samples": problem.samples,
                "weight": spectra.weights[name],
                "loss": loss_at(problem, point),
                "eigenvalues": [plain_eigenvalue(value) for value in spectra.clients[name]],
            }
            for name, problem in subject.clients.items()
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
