"""`flatlab.eigs`, `trace`, `density`, `surface` and `verify`: what the commands of these names compute.

Each measures a checkpoint (a loaded one, a run, or the path of either), or a model of yours with its loss and data.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from analysis.losses import Loss
from flatlab.cli.progress import progress_line
from flatlab.errors import UsageError, shown
from flatlab.interface.checkpoint import LoadedCheckpoint, load
from flatlab.interface.run import TrainedRun
from flatlab.measuring.density import DensityResult, Quadrature, measure_density
from flatlab.measuring.eigs import EigsResult, measure_eigs, read_search
from flatlab.measuring.result import Result, measured
from flatlab.measuring.subjects import Measurement, Subject, check, open_checkpoint, open_parts
from flatlab.measuring.surface import SurfaceResult, measure_surface, read_section
from flatlab.measuring.trace import TraceResult, measure_trace, read_probing
from flatlab.measuring.verify import Verification, open_with_clients, verify_subject
from flatlab.tell import Tell

Model = LoadedCheckpoint | TrainedRun | str | Path | nn.Module
"""What is measured."""

R = TypeVar("R", bound=Result)


def eigs(
    model: Model,
    loss: Loss | str | None = None,
    data: Any = None,
    *,
    top_k: int = 1,
    layers: str | Sequence[str] = "all",
    method: str = "lanczos",
    backend: str = "flatlab",
    tol: float = 1e-3,
    max_iter: int = 1000,
    samples: int | None = None,
    full: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
) -> EigsResult:
    """Measure the `top_k` largest Hessian eigenvalues of the network and of every layer, each with its residual.

    `model` is a checkpoint, or a module with its `loss` (a name or a function of (outputs, targets)) and `data`
    ((inputs, targets), or batches of these). `layers` is "all", "none", or their names; `method`
    "lanczos" or "power"; `backend` "flatlab" or "pyhessian". The search stops where |Hv - lambda v| is below the share
    `tol` of |lambda|, or after `max_iter` products per eigenvalue. `samples` of the data are taken (None: of a
    checkpoint 2,000 or all if fewer, of own data all), or with `full` all. Raises `UsageError` or `MeasurementError`
    for what cannot be measured as asked.

    >>> import flatlab, torch
    >>> report = flatlab.eigs("runs/a", top_k=2, samples=100)
    >>> [layer.name for layer in report.layers], len(report.eigenvalues), tuple(report.vectors.shape)
    (['fc1', 'fc2', 'fc3'], 2, (6570, 2))
    >>> top = report.eigenvalues[0]
    >>> top.converged and top.residual <= 1e-3 * top.value
    True

    A model of your own; the Hessian of this one is 2 X^T X / N, that is 1:

    >>> line = torch.nn.Linear(1, 1, bias=False)
    >>> round(flatlab.eigs(line, "mse", (torch.tensor([[0.0], [1.0]]), torch.zeros(2, 1))).eigenvalues[0].value, 4)
    1.0
    """
    search = read_search(top_k, layers if isinstance(layers, str) else ",".join(layers), method, backend, tol, max_iter)
    asked = {"samples": samples, "full": full, "dtype": dtype, "device": device}
    return _measured(model, loss, data, asked, lambda subject, tell: measure_eigs(subject, search, tell), vars(search))


def trace(
    model: Model,
    loss: Loss | str | None = None,
    data: Any = None,
    *,
    tol: float = 0.02,
    max_probes: int = 400,
    samples: int | None = None,
    full: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
) -> TraceResult:
    """Estimate the trace of the Hessian and of every layer's block, and the Frobenius norm, with standard errors.

    Random signs are multiplied with the Hessian, `max_probes` at most, until the trace's standard error is below the
    share `tol` of it. The other arguments are those of `eigs`.

    >>> import flatlab
    >>> report = flatlab.trace("runs/a", samples=100, tol=0.2)
    >>> report.converged, abs(sum(one.value for one in report.layers.values()) / report.trace.value - 1) < 1e-6
    (True, True)
    """
    probing = read_probing(tol, max_probes)
    asked = {"samples": samples, "full": full, "dtype": dtype, "device": device}
    return _measured(
        model, loss, data, asked, lambda subject, tell: measure_trace(subject.problem, probing, tell), vars(probing)
    )


def density(
    model: Model,
    loss: Loss | str | None = None,
    data: Any = None,
    *,
    depth: int = 40,
    probes: int = 5,
    samples: int | None = None,
    full: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
) -> DensityResult:
    """Estimate how the Hessian's eigenvalues are distributed, by stochastic Lanczos quadrature.

    `depth` products are taken from each of `probes` random vectors; two or more give standard errors. The other
    arguments are those of `eigs`.

    >>> import flatlab
    >>> report = flatlab.density("runs/a", samples=100, depth=10, probes=2)
    >>> report.lowest < 0 < report.highest, round(sum(share.value for share in report.shares.values()), 6)
    (True, 1.0)
    """
    quadrature = Quadrature(depth, probes)
    asked = {"samples": samples, "full": full, "dtype": dtype, "device": device}
    return _measured(
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
    return _measured(
        model, loss, data, asked, lambda subject, tell: measure_surface(subject.problem, section, tell), vars(section)
    )


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
    with progress_line(_name(model)) as tell:
        if isinstance(model, nn.Module):
            return verify_subject(_own(model, loss, data, asked)(), {}, tell)
        checkpoint = _checkpoint(model, loss, data)
        measurement = checkpoint.measurement(**asked)
        check(measurement, [checkpoint.path])
        return verify_subject(*open_with_clients(checkpoint.path, measurement), tell)


def _measured(
    model: Model,
    loss: Loss | str | None,
    data: Any,
    asked: Mapping[str, Any],
    work: Callable[[Subject, Tell], R],
    settings: Mapping[str, Any],
) -> R:
    """Do `work` as the command does, on what is `asked` of the model's data."""
    with progress_line(_name(model)) as tell:
        if isinstance(model, nn.Module):
            return measured(_own(model, loss, data, asked), work, settings, tell)
        checkpoint = _checkpoint(model, loss, data)
        measurement = checkpoint.measurement(**asked)
        check(measurement, [checkpoint.path])
        return measured(partial(open_checkpoint, checkpoint.path, measurement), work, settings, tell)


def _own(model: nn.Module, loss: Loss | str | None, data: Any, asked: Mapping[str, Any]) -> Callable[[], Subject]:
    if data is None:
        raise UsageError("A model of your own is measured with its loss and data: flatlab.eigs(model, loss, data).")
    measurement = Measurement(**asked)
    check(measurement, [])
    return partial(open_parts, model, "cross_entropy" if loss is None else loss, data, measurement)


def _checkpoint(model: LoadedCheckpoint | TrainedRun | str | Path, loss: object, data: object) -> LoadedCheckpoint:
    if loss is not None or data is not None:
        raise UsageError("loss and data are for a model of your own; a checkpoint brings its own: leave them out.")
    if isinstance(model, TrainedRun):
        return model.checkpoint
    if isinstance(model, LoadedCheckpoint):
        return model
    if not isinstance(model, str | Path):
        raise UsageError(
            f"What is measured is a checkpoint, a run, the path of either, or a module, not {shown(model)}."
        )
    return load(model)


def _name(model: Model) -> str:
    """What is measured, for the line that shows progress."""
    if isinstance(model, nn.Module):
        return type(model).__name__
    return str(model.path if isinstance(model, LoadedCheckpoint) else getattr(model, "folder", model))
