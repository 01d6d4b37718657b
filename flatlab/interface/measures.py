"""`flatlab.eigs`, `trace`, `density`, `surface` and `verify`: what the commands of these names compute.

Each measures a checkpoint (a loaded one, a run, or the path of either), or a model of yours with its loss and data.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from analysis.losses import Loss
from flatlab.errors import require_count
from flatlab.interface.subject import Model, checkpoint_of, measure_model, name_of, own_subject
from flatlab.measuring.batch_spectrum import BatchesResult, measure_batches
from flatlab.measuring.client_curvature import ClientsResult, measure_clients
from flatlab.measuring.density import DensityResult, Quadrature, measure_density
from flatlab.measuring.eigs import EigsResult, measure_eigs, read_search
from flatlab.measuring.hub_models import names_hub_model
from flatlab.measuring.matrices import read_matrix
from flatlab.measuring.subjects import check
from flatlab.measuring.surface import SurfaceResult, measure_surface, read_section
from flatlab.measuring.trace import TraceResult, measure_trace, read_probing
from flatlab.measuring.verify import Verification, open_with_clients, verify_subject
from flatlab.terminal.progress import progress_line
from flatlab.torch_settings import usual_settings


def eigs(
    model: Model,
    loss: Loss | str | None = None,
    data: Any = None,
    *,
    top_k: int = 1,
    layers: str | Sequence[str] = "all",
    group_by: str | Sequence[str] | None = None,
    method: str = "lanczos",
    backend: str = "flatlab",
    tol: float = 1e-3,
    max_iter: int = 1000,
    which: str = "largest",
    matrix: str = "hessian",
    samples: int | None = None,
    full: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
) -> EigsResult:
    """Measure the `top_k` largest Hessian eigenvalues of the network and of every layer, each with its residual.

    `which` is "largest", "smallest" or "both" (`top_k` at each end); `matrix` "hessian", "gauss-newton", "fisher"
    (exact, for cross-entropy, next_token, binary cross-entropy of logits and mse) or "empirical-fisher"
    (docs/curvature.md).

    `model` is a checkpoint, or a module (or "hf:NAME", "timm:NAME") with its `loss` (a name or a function of (outputs,
    targets); None: cross_entropy, or what a named model is trained on) and `data` ((inputs, targets), or batches of
    these). `layers` is "all", "none", or their names; `group_by` takes them together, "block"
    (`h.3.attn` and `h.3.mlp` make `h.3`) or patterns such as "h.*", and finds the top of the groups' diagonal blocks;
    `method` "lanczos" or "power"; `backend` "flatlab" or "pyhessian". The search stops where |Hv - lambda v| is below
    the share `tol` of |lambda|, or after `max_iter` products per eigenvalue. `samples` of the data are taken (None: of
    a checkpoint 2,000 or all if fewer, of own data all), or with `full` all. Raises `UsageError` or `MeasurementError`
    for what cannot be measured as asked.

    >>> import flatlab, torch
    >>> report = flatlab.eigs("runs/a", top_k=2, samples=100)
    >>> [layer.name for layer in report.layers], len(report.eigenvalues), tuple(report.vectors.shape)
    (['fc1', 'fc2', 'fc3'], 2, (6570, 2))
    >>> top = report.eigenvalues[0]
    >>> top.converged and top.residual <= 1e-3 * top.value
    True

    Both ends; `report.save_vectors("vectors.safetensors")` keeps the eigenvectors.

    >>> ends = flatlab.eigs("runs/a", which="both", layers="none", samples=100).eigenvalues
    >>> [value.value > 0 for value in ends]
    [True, False]

    A model of your own; the Hessian of this one is 2 X^T X / N, that is 1:

    >>> line = torch.nn.Linear(1, 1, bias=False)
    >>> round(flatlab.eigs(line, "mse", (torch.tensor([[0.0], [1.0]]), torch.zeros(2, 1))).eigenvalues[0].value, 4)
    1.0
    """
    names = layers if isinstance(layers, str) else ",".join(layers) if layers else "none"
    grouping = group_by if group_by is None or isinstance(group_by, str) else ",".join(group_by)
    search = read_search(top_k, names, method, backend, tol, max_iter, which, matrix, grouping)
    asked = {"samples": samples, "full": full, "dtype": dtype, "device": device}
    return measure_model(
        model, loss, data, asked, lambda subject, tell: measure_eigs(subject, search, tell), search.settings
    )


def client_eigs(
    model: Model,
    clients: str = "all",
    *,
    top_k: int = 1,
    tol: float = 1e-3,
    max_iter: int = 1000,
    samples: int | None = None,
    full: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
) -> ClientsResult:
    """Measure the top eigenvalues of each client's own loss at a checkpoint, as `flatlab eigs --clients`.

    `clients` is "all", or numbers separated by commas. Every client keeps its share among the `samples`. The result
    also says whether lambda_max of all together is at most the weighted mean of the clients' (statement F).

    >>> import flatlab
    >>> report = flatlab.client_eigs("runs/a", samples=60)
    >>> len(report.spectra.clients), report.spectra.holds
    (6, True)
    """
    search = read_search(top_k, tol=tol, max_iter=max_iter)
    asked = {"samples": samples, "full": full, "dtype": dtype, "device": device, "clients": clients}
    return measure_model(
        model, None, None, asked, lambda subject, tell: measure_clients(subject, search, tell), search.plain_part
    )


def batch_eigs(
    model: Model,
    loss: Loss | str | None = None,
    data: Any = None,
    *,
    batch_size: int,
    top_k: int = 1,
    tol: float = 1e-3,
    max_iter: int = 1000,
    samples: int | None = None,
    full: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
) -> BatchesResult:
    """Measure the top eigenvalues of every mini-batch of `batch_size`, as `flatlab eigs --per-batch`.

    The other arguments are those of `eigs`.

    >>> import flatlab
    >>> report = flatlab.batch_eigs("runs/a", samples=60, batch_size=20)
    >>> tuple(report.batches.values.shape), report.batches.values.mean().item() >= report.eigenvalues[0].value
    ((3, 1), True)
    """
    require_count("batch-size", batch_size)
    search = read_search(top_k, tol=tol, max_iter=max_iter)
    settings = search.plain_part | {"batch_size": batch_size}
    asked = {"samples": samples, "full": full, "dtype": dtype, "device": device}
    return measure_model(
        model, loss, data, asked, lambda subject, tell: measure_batches(subject, search, batch_size, tell), settings
    )


def trace(
    model: Model,
    loss: Loss | str | None = None,
    data: Any = None,
    *,
    tol: float | None = None,
    max_probes: int | None = None,
    estimator: str = "hutchinson",
    matrix: str = "hessian",
    samples: int | None = None,
    full: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
) -> TraceResult:
    """Estimate the trace of the Hessian and of every layer's block, and the Frobenius norm, with standard errors.

    Random signs are multiplied with the Hessian, `max_probes` (400) at most, until the trace's standard error is below
    the share `tol` (0.02) of it. `estimator` "hutch++" makes `max_probes` (60) products, is sharper where the spectrum
    decays, and gives the network's trace alone. `matrix` and the other arguments are those of `eigs`.

    >>> import flatlab
    >>> report = flatlab.trace("runs/a", samples=100, tol=0.2)
    >>> report.converged, abs(sum(one.value for one in report.layers.values()) / report.trace.value - 1) < 1e-6
    (True, True)
    >>> flatlab.trace("runs/a", samples=100, estimator="hutch++", max_probes=30).products  # one of them in float64
    31
    """
    probing = read_probing(tol, max_probes, estimator, matrix)
    asked = {"samples": samples, "full": full, "dtype": dtype, "device": device}
    return measure_model(
        model, loss, data, asked, lambda subject, tell: measure_trace(subject.problem, probing, tell), vars(probing)
    )


def density(
    model: Model,
    loss: Loss | str | None = None,
    data: Any = None,
    *,
    depth: int = 40,
    probes: int = 5,
    layers: bool = False,
    matrix: str = "hessian",
    samples: int | None = None,
    full: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
) -> DensityResult:
    """Estimate how the Hessian's eigenvalues are distributed, by stochastic Lanczos quadrature.

    `depth` products are taken from each of `probes` random vectors; two or more give standard errors. With
    `layers` each layer's block has its density too. `matrix` and the other arguments are those of `eigs`.

    >>> import flatlab
    >>> report = flatlab.density("runs/a", samples=100, depth=10, probes=2)
    >>> report.lowest < 0 < report.highest, round(sum(share.value for share in report.shares.values()), 6)
    (True, 1.0)
    >>> list(flatlab.density("runs/a", samples=100, depth=5, probes=2, layers=True).layers)
    ['fc1', 'fc2', 'fc3']
    """
    quadrature = Quadrature(depth, probes, read_matrix(matrix), layers)
    asked = {"samples": samples, "full": full, "dtype": dtype, "device": device}
    return measure_model(
        model,
        loss,
        data,
        asked,
        lambda subject, tell: measure_density(subject.problem, quadrature, tell),
        vars(quadrature),
    )


def surface(
    model: Model,
    loss: Loss | str | None = None,
    data: Any = None,
    *,
    along: str = "random",
    line: bool = False,
    extent: float = 1.0,
    points: int = 21,
    seed: int = 0,
    samples: int | None = None,
    full: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
) -> SurfaceResult:
    """Evaluate the loss around the model, along one direction (`line`) or two.

    `along` is "random" (filter-normalised directions drawn from `seed`) or "eigenvectors". `extent` multiples of each
    direction are taken either way, at `points` places. The other arguments are those of `eigs`.

    >>> import flatlab
    >>> report = flatlab.surface("runs/a", samples=100, points=3)
    >>> tuple(report.surface.losses.shape), report.surface.losses[1, 1].item() == report.loss
    ((3, 3), True)
    """
    section = read_section(along, line, extent, points, seed)
    asked = {"samples": samples, "full": full, "dtype": dtype, "device": device}
    return measure_model(
        model, loss, data, asked, lambda subject, tell: measure_surface(subject.problem, section, tell), vars(section)
    )


@usual_settings()
def verify(
    model: Model,
    loss: Loss | str | None = None,
    data: Any = None,
    *,
    samples: int | None = None,
    device: str = "cpu",
) -> Verification:
    """Check the theory's statements (docs/theory.md) on a network, by products in float64, with error bounds.

    `samples` of a checkpoint are 200 unless given; its clients are held to statement F too. The other arguments are
    those of `eigs`.

    >>> import flatlab
    >>> report = flatlab.verify("runs/a", samples=50)
    >>> report.holds, len(report.layers)
    (True, 3)
    """
    asked = {"samples": samples, "dtype": "float64", "device": device}
    with progress_line(name_of(model)) as tell:
        if isinstance(model, nn.Module) or names_hub_model(model):
            return verify_subject(own_subject(model, loss, data, asked)(), {}, tell)
        checkpoint = checkpoint_of(model, loss, data)
        measurement = checkpoint.measurement(**asked)
        check(measurement, [checkpoint.place])
        return verify_subject(*open_with_clients(checkpoint.place, measurement), tell)
