"""Curvature during training (`--track-eigs`)."""

import torch
from torch import Tensor

from analysis.problem import make_problem
from analysis.spectrum import eigs
from flatlab.data import normalise
from flatlab.federated.parameters import load_vector
from flatlab.federated.rounds import Probe
from flatlab.federated.world import World
from flatlab.measuring.eigs import plain_eigenvalue
from flatlab.runs.metrics import Record

SAMPLES = 500
"""Training samples, class-balanced, on which curvature is tracked."""

TOLERANCE = 1e-2
"""Relative residual at which tracking stops; each record states what was reached, as `flatlab eigs --json` does."""


def curvature_probe(world: World, device: torch.device) -> Probe:
    """Return the probe that measures, on `device`, the server model's top eigenvalue, and each layer's, after a round.

    It starts from the eigenvector of the last measurement, which training moves little between rounds.
    """
    model = world.new_model()
    count = min(SAMPLES, len(world.data.train))
    train = world.data.subset(count, None, world.config.seed).train
    data = (normalise(train.images, world.data.mean, world.data.std, dtype=world.dtype), train.labels)

    def probe(w: Tensor, start: Tensor | None) -> tuple[Record, Tensor]:
        load_vector(model, w)
        report = eigs(make_problem(model, "cross_entropy", data, device=device), tol=TOLERANCE, start=start)
        record: Record = {
            "samples": report.samples,
            "global": plain_eigenvalue(report.eigenvalues[0]),
            "layers": {layer.name: plain_eigenvalue(layer.eigenvalues[0]) for layer in report.layers},
            "hvps": report.products,
            "seconds": report.seconds,
        }
        return record, report.vectors

    return probe
