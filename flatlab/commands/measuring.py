"""From a checkpoint to the loss that is differentiated, and what `flatlab eigs` does with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from analysis.problem import Problem, make_problem
from analysis.spectrum import Eigenvalue, EigsReport, eigs
from flatlab.checkpoint import Checkpoint, load_checkpoint, provenance, rebuild
from flatlab.commands.output import console, status, write_json
from flatlab.data import normalise
from flatlab.errors import UsageError
from flatlab.memory import keep_freed_memory
from flatlab.world import DTYPES

DEFAULT_SAMPLES = 2000


@dataclass(frozen=True)
class Measurement:
    """On what, and how exactly, a checkpoint's loss is differentiated."""

    samples: int | None = None  # of the training set, class-balanced; None: DEFAULT_SAMPLES, or all if fewer
    dtype: str = "float32"
    device: str = "cpu"
    data_root: Path | None = None
    trusted_model: str | None = None


def open_problem(path: Path, measurement: Measurement) -> tuple[Checkpoint, Problem]:
    """Rebuild a checkpoint's model, data and loss: the mean cross-entropy on its training samples, not augmented.

    Raises `UsageError` for a bad file, more samples than there are, or a device that is not there.
    """
    keep_freed_memory()
    if measurement.dtype not in DTYPES:
        raise UsageError(f"--dtype is float32 or float64, not {measurement.dtype!r}.")
    if measurement.device != "cpu" and not (measurement.device.startswith("cuda") and torch.cuda.is_available()):
        raise UsageError(f"There is no device {measurement.device!r} here; leave --device out to use the CPU.")
    checkpoint = load_checkpoint(path)
    model, data = rebuild(checkpoint, root=measurement.data_root, trusted_model=measurement.trusted_model)
    count = measurement.samples or min(DEFAULT_SAMPLES, len(data.train))
    train = data.subset(count, None, checkpoint.config.seed).train
    dtype = DTYPES[measurement.dtype]
    inputs = normalise(train.images, data.mean, data.std, dtype=dtype)
    problem = make_problem(model, "cross_entropy", (inputs, train.labels), dtype=dtype, device=measurement.device)
    return checkpoint, problem


def eigs_run(
    paths: Sequence[Path],
    measurement: Measurement,
    k: int = 1,
    layers: str = "all",
    method: str = "lanczos",
    backend: str = "flatlab",
    tol: float = 1e-3,
    max_iter: int = 1000,
    json: Path | None = None,
) -> list[dict[str, Any]]:
    """Measure every checkpoint, print one table, write `<checkpoint>.eigs.json` beside each; returns their contents."""
    if method not in ("lanczos", "power"):
        raise UsageError(f"--method is lanczos or power, not {method!r}.")
    if backend not in ("flatlab", "pyhessian"):
        raise UsageError(f"--backend is flatlab or pyhessian, not {backend!r}.")
    if not 0 < tol < 1:
        raise UsageError(f"--tol is a share of the eigenvalue, between 0 and 1, not {tol:g}.")
    for path in paths:
        load_checkpoint(path)  # every file is looked at before hours are spent on the first
    names = {"all": None, "none": []}.get(layers, [name.strip() for name in layers.split(",")])
    results = []
    for path in paths:
        checkpoint, problem = open_problem(path, measurement)
        with _progress() as progress:
            task = progress.add_task(str(path), stage="forward pass")

            def show(layer: str, products: int, residual: float, progress: Any = progress, task: Any = task) -> None:
                stage = f"{layer or 'whole network'}: {products} products, residual {residual:.1e}"
                progress.update(task, stage=stage)

            report = eigs(
                problem,
                k,
                tol=tol,
                max_iter=max_iter,
                method=method,  # type: ignore[arg-type]
                layers=names,
                backend=backend,  # type: ignore[arg-type]
                progress=show,
            )
        result = as_json(path, checkpoint, report)
        write_json(path.with_suffix(".eigs.json"), result)
        results.append(result)
    _print(results)
    write_json(json, results[0] if len(results) == 1 else {"checkpoints": results})
    return results


def as_json(path: Path, checkpoint: Checkpoint, report: EigsReport) -> dict[str, Any]:
    """The report as plain data; a norm that does not exist is null."""
    config = checkpoint.config
    return {
        "checkpoint": str(path),
        "data": {"dataset": config.dataset, "split": "train", "samples": report.samples},
        "loss": report.loss,
        "global": {"eigenvalues": [_plain(value) for value in report.eigenvalues]},
        "layers": [
            {
                "name": layer.name,
                "parameters": layer.parameters,
                "eigenvalues": [_plain(value) for value in layer.eigenvalues],
                "input_norm2": None if math.isnan(layer.input_norm2) else layer.input_norm2,
                "output_norm2": None if math.isnan(layer.output_norm2) else layer.output_norm2,
            }
            for layer in report.layers
        ],
        "method": report.method,
        "backend": report.backend,
        "hvps": report.products,
        "seconds": report.seconds,
        "versions": provenance(),
        "run": {"config": config.plain(), "round": checkpoint.round, "metrics": checkpoint.metrics},
    }


def _plain(value: Eigenvalue) -> dict[str, Any]:
    return {"value": value.value, "residual": value.residual, "converged": value.converged}


def _progress() -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=status, transient=True)


def _print(results: Sequence[dict[str, Any]]) -> None:
    """One row for the network and one per layer; per checkpoint the eigenvalues, and the activation norms."""
    several = len(results) > 1
    table = Table(title=_title(results[0]), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer")
    if not several:  # two checkpoints fit 80 columns without it
        table.add_column("parameters", justify="right")
    for number, result in enumerate(results, start=1):
        mark = f"[{number}]\n" if several else ""
        count = len(result["global"]["eigenvalues"])
        table.add_column(f"{mark}λ{'₁' if count == 1 else f'₁…{count}'} ± residual", justify="right")
        if number > 1:
            table.add_column("\n/[1]", justify="right")
        table.add_column(f"{mark}|a|² in → out", justify="right")
    by_name = [{layer["name"]: layer for layer in result["layers"]} for result in results]
    table.add_row(*_row("network", [_whole(result) for result in results]), end_section=True)
    for name in dict.fromkeys(name for layers in by_name for name in layers):
        table.add_row(*_row(name, [layers.get(name) for layers in by_name]))
    console.print(table)
    for number, result in enumerate(results, start=1):
        run = result["run"]
        accuracy = run["metrics"].get("test_accuracy")
        note = "" if accuracy is None else f", test accuracy {accuracy:.2%}"
        name = f"[{number}] " if several else ""
        console.print(
            f"{name}{result['checkpoint']}: train loss {result['loss']:.4g}{note}; "
            f"{result['hvps']} products, {result['seconds']:.1f} s",
            markup=False,
            soft_wrap=True,
        )
    if any(not value["converged"] for result in results for value in _all_values(result)):
        console.print("! not converged: the residual is above the tolerance; raise --max-iter, or --tol.")


def _title(result: dict[str, Any]) -> str:
    data = result["data"]
    return f"Hessian of the mean cross-entropy, {data['samples']} training samples of {data['dataset']}"


def _whole(result: dict[str, Any]) -> dict[str, Any]:
    parameters = sum(layer["parameters"] for layer in result["layers"])
    return {**result["global"], "parameters": parameters or None, "input_norm2": None, "output_norm2": None}


def _row(name: str, columns: Sequence[dict[str, Any] | None]) -> list[str]:
    first = next(column for column in columns if column is not None)
    cells = [name]
    if len(columns) == 1:
        cells.append(f"{first['parameters']:,}" if first["parameters"] else "")
    for number, column in enumerate(columns):
        if column is None:
            cells += [""] * (2 if number == 0 else 3)
            continue
        cells.append("\n".join(_value(value) for value in column["eigenvalues"]))
        if number > 0:
            cells.append(_ratio(column, columns[0]))
        norms = [column["input_norm2"], column["output_norm2"]]
        cells.append("" if norms == [None, None] else " → ".join("?" if n is None else f"{n:.3g}" for n in norms))
    return cells


def _value(value: dict[str, Any]) -> str:
    return f"{value['value']:.4g} ± {value['residual']:.0e}" + ("" if value["converged"] else " !")


def _ratio(column: dict[str, Any], first: dict[str, Any] | None) -> str:
    if first is None or first["eigenvalues"][0]["value"] == 0:
        return ""
    return f"{column['eigenvalues'][0]['value'] / first['eigenvalues'][0]['value']:.2f}"


def _all_values(result: dict[str, Any]) -> list[dict[str, Any]]:
    layers = (value for layer in result["layers"] for value in layer["eigenvalues"])
    return [*result["global"]["eigenvalues"], *layers]
