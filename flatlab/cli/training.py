"""What `flatlab train` and `flatlab demo` do: from options to a finished run, with its progress and its summary."""

import os
import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from flatlab.cli.console import console, status, write_json
from flatlab.cli.events import event_writer
from flatlab.cli.tracking import curvature_probe, draw_run
from flatlab.data import absolute_name
from flatlab.errors import UsageError, shown
from flatlab.federated.config import RunConfig, make_config, parse_toml, read_config
from flatlab.federated.engine.base import Engine
from flatlab.federated.engine.batched import BatchedEngine
from flatlab.federated.engine.process import ProcessEngine
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.partition import class_counts
from flatlab.federated.precision import missing_kernels
from flatlab.federated.presets import preset_fields
from flatlab.federated.rounds import SAVE_SECONDS, Record, Run, most_participants, run_folder, train
from flatlab.federated.trial import statement, tried
from flatlab.federated.world import World, make_world
from flatlab.functions import require_named
from flatlab.malloc import keep_freed_memory


@dataclass(frozen=True)
class Execution:
    """Where and how a run is carried out; none of it changes the trained model."""

    workers: int | None = None
    engine: str = "auto"
    device: str = "auto"
    state: str = "memory"
    resume: bool = False
    save_every: float = SAVE_SECONDS
    track_eigs: int | None = None  # rounds between measurements of the server model's curvature
    tensorboard: bool = False


def read_fields(
    path: Path | None,
    preset: str | None,
    options: dict[str, Any],
    settings: list[str],
    *,
    resume: bool,
    out: Path | None,
) -> RunConfig:
    """Merge, each over the one before: `preset`, the TOML file at `path`, `options` (None: not given), `settings`.

    A resumed run takes its configuration from its own folder, and any field given beside must agree with it. Where a
    file names a function of the user's as the model, the options must name it too. Raises `UsageError`.
    """
    given = {name: value for name, value in options.items() if value is not None} | _parse_settings(settings)
    merged = _over(read_config(path) if path else {}, given)
    if preset:
        merged = _over(preset_fields(preset, merged.get("algorithm", "fedavg"), bool(merged.get("man"))), merged)
    source = f"{path} and the options" if path else "the options"
    if resume:
        folder = out or default_folder(make_config(merged, source))
        saved = _saved_config(folder)
        _require_agreement(saved.plain(), merged, folder)
        require_named(saved.model, given.get("model"), f"The run in {folder}")
        return saved
    if given.get("zeta") is not None and not merged.get("man"):
        raise UsageError("--zeta is the coefficient of MAN, which is off; add --man.")
    config = make_config(merged, source)
    require_named(config.model, given.get("model"), f"The configuration {path}")
    return config.model_copy(update={"dataset": absolute_name(config.dataset)})


def _require_agreement(saved: dict[str, Any], given: dict[str, Any], folder: Path) -> None:
    """Raise `UsageError` where a field that is given differs from the saved run's; hyperparameters one by one."""
    fields = {name: (saved.get(name), value) for name, value in given.items()}
    if isinstance(given.get("hyper"), dict):
        hyper = fields.pop("hyper")[1]
        fields |= {f"hyper.{name}": (saved["hyper"].get(name), value) for name, value in hyper.items()}
    for name, (found, value) in fields.items():
        if found != value:
            raise UsageError(
                f"The run in {folder} has another {name} ({shown(found)}); "
                "leave that option out to go on with it, or start a new run in another --out."
            )


def default_folder(config: RunConfig) -> Path:
    """checkpoints/<dataset>-<algorithm>[-man]-s<seed>."""
    dataset = Path(config.dataset).name
    return Path("checkpoints") / f"{dataset}-{config.algorithm}{'-man' if config.man else ''}-s{config.seed}"


def train_run(
    config: RunConfig, data_root: Path | None, out: Path | None, execution: Execution, json: Path | None
) -> Path:
    """Carry out one run with its progress display; returns the path of its final checkpoint.

    Raises `FlatlabError`, and `SystemExit` with code 130 after an interruption, when it has said how to resume.
    """
    keep_freed_memory()
    folder = out or default_folder(config)
    _check(folder, execution)
    began = time.monotonic()
    world = tried(make_world(config, data_root))
    if said := statement(world):
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    with run_folder(folder):
        run = Run(world, folder, "disk" if execution.state == "disk" else "memory")
        run.resume() if execution.resume else run.begin()
        last: Record = run.server.evaluated
        if run.server.round < config.rounds:
            with _open_engine(world, execution) as engine:
                last = _train_with_progress(run, engine, execution)
    checkpoint = folder / "final.pt"
    seconds = time.monotonic() - began
    summary = {
        "checkpoint": str(checkpoint),
        "rounds": config.rounds,
        "test_accuracy": last["test_accuracy"],
        "train_loss": last["train_loss"],
        "seconds": seconds,
        "images_per_second": last["images_per_second"],
    }
    _print_summary(world, last, seconds)
    write_json(json, summary)
    if execution.track_eigs:
        console.print(f"Eigenvalues: [bold]{draw_run(folder)}[/bold]", soft_wrap=True)
    following = f"flatlab eigs {checkpoint}{_own_model(config)}"
    console.print(f"Checkpoint: [bold]{checkpoint}[/bold]\nNext:       [bold]{following}[/bold]", soft_wrap=True)
    return checkpoint


def print_split(config: RunConfig, data_root: Path | None) -> None:
    """Print how many samples of each class each client holds."""
    world = make_world(config, data_root)
    counts = class_counts(world.data.train.labels, world.parts, world.data.classes)
    rule = f"Dirichlet({config.delta:g})" if config.partition == "dirichlet" else "IID"
    table = Table(title=f"{config.dataset}, {config.clients} clients, {rule}, seed {config.seed}", show_lines=False)
    table.add_column("client", justify="right")
    table.add_column("samples", justify="right")
    table.add_column("classes", justify="right")
    wide = world.data.classes > 20
    if wide:
        table.add_column("largest classes (class: samples)")
    else:
        for label in range(world.data.classes):
            table.add_column(str(label), justify="right")
    for k, row in enumerate(counts):
        cells = (
            [", ".join(f"{label}: {row[label]}" for label in (-row).argsort(kind="stable")[:8] if row[label])]
            if wide
            else [str(n) if n else "[dim]·[/dim]" for n in row]
        )
        table.add_row(str(k), str(row.sum()), str((row > 0).sum()), *cells)
    console.print(table)


def _open_engine(world: World, execution: Execution) -> Engine:
    device = "cuda" if execution.device != "cpu" and torch.cuda.is_available() else "cpu"
    if note := missing_kernels(world.config.precision, torch.device(device)):
        status.print(note, soft_wrap=True)
    if execution.engine == "batched" or (execution.engine == "auto" and device == "cuda"):
        return BatchedEngine(world, torch.device(device))
    slots = most_participants(world.config)
    workers = min(execution.workers or len(os.sched_getaffinity(0)), slots)
    return SequentialEngine(world) if workers == 1 else ProcessEngine(world, workers, slots)


class _Latest(ProgressColumn):
    """One number of the newest record that has it; nothing before there is one."""

    def __init__(self, form: str, key: str) -> None:
        super().__init__()
        self.form, self.key = form, key

    def render(self, task: Task) -> Text:
        """Format the number."""
        value = task.fields.get(self.key)
        return Text("" if value is None else self.form.format(value), no_wrap=True)


def _train_with_progress(run: Run, engine: Engine, execution: Execution) -> Record:
    config = run.world.config
    columns = (
        TextColumn("round {task.completed}/{task.total}"),
        BarColumn(bar_width=10),
        _Latest("loss {:.3f}", "train_loss"),
        _Latest("acc {:.1%}", "test_accuracy"),
        _Latest("|a|² {:.4g}", "activation_norm"),
        _Latest("{:,.0f} img/s", "images_per_second"),
        TimeRemainingColumn(compact=True),
    )
    latest: Record = dict(run.server.evaluated)
    with ExitStack() as stack:
        observers: list[Callable[[Record], None]] = [latest.update]
        if execution.tensorboard:
            observers.append(stack.enter_context(event_writer(run.folder, run.server.round)))
        probe = curvature_probe(run.world) if execution.track_eigs else None
        progress = stack.enter_context(Progress(*columns, console=status))
        task = progress.add_task("", total=config.rounds, completed=run.server.round, **latest)
        observers.append(lambda record: progress.update(task, advance=1, **latest))

        def on_round(record: Record) -> None:
            for observe in observers:
                observe(record)

        try:
            train(run, engine, on_round, execution.save_every, probe, execution.track_eigs or 1)
        except KeyboardInterrupt as interruption:
            progress.stop()
            resume = f"flatlab train --resume --out {run.folder}{_own_model(config)}"
            status.print(f"\nInterrupted. Go on with: {resume}", soft_wrap=True)
            raise SystemExit(130) from interruption
    return latest


def _print_summary(world: World, last: Record, seconds: float) -> None:
    config = world.config
    title = f"{config.algorithm}{f' + MAN (zeta {config.zeta:g})' if config.man else ''} on {config.dataset}"
    if config.precision != "ieee":
        title += f", trained in {config.precision}"
    table = Table(title=title, title_justify="left")
    for heading in ("model", "test accuracy", "test loss", "mean |a|²"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, result in last["models"].items():
        norms = result["activation_norms"]
        table.add_row(name, f"{result['accuracy']:.2%}", f"{result['loss']:.4f}", f"{sum(norms):.4g}")
    console.print(table)
    console.print(f"{config.rounds} rounds, train loss {last['train_loss']:.4f}, {seconds:.1f} s")


def _check(folder: Path, execution: Execution) -> None:
    choices = {"state": ("memory", "disk"), "engine": ("auto", "process", "batched"), "device": ("auto", "cpu", "cuda")}
    for option, allowed in choices.items():
        value = getattr(execution, option)
        if value not in allowed:
            raise UsageError(f"--{option} is one of {', '.join(allowed)}, not {value!r}.")
    if execution.device == "cuda" and execution.engine == "process":
        raise UsageError("--engine process trains on the CPU; leave --device out, or use --engine batched.")
    if execution.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("There is no CUDA device here; leave --device out to use the CPU.")
    if not execution.resume and (folder / "config.toml").exists():
        raise UsageError(
            f"{folder} already holds a run; go on with it by --resume, or choose another folder with --out."
        )


def _saved_config(folder: Path) -> RunConfig:
    path = folder / "config.toml"
    if not path.exists():
        raise UsageError(f"There is no run to resume in {folder}; check --out, or leave --resume out to start one.")
    return make_config(read_config(path), str(path))


def _own_model(config: RunConfig) -> str:
    """What a command on this run must add where its model is a function of the user's."""
    return f" --model {shlex.quote(config.model)}" if ":" in config.model else ""


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay fields over others; hyperparameters one by one. What is no table stays, for validation to name it."""
    hypers = [fields["hyper"] for fields in (below, above) if "hyper" in fields]
    if len(hypers) == 2 and all(isinstance(hyper, dict) for hyper in hypers):
        return {**below, **above, "hyper": {**hypers[0], **hypers[1]}}
    return {**below, **above}


def _parse_settings(settings: list[str]) -> dict[str, Any]:
    """Turn FIELD=VALUE words into fields; a value is TOML (50, 0.1, true, [64, 32]) or else a plain word."""
    fields: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {setting} is not FIELD=VALUE, as in --set batch_size=50.")
        try:
            value = parse_toml(f"value = {text}", setting)["value"]
        except UsageError:
            value = text
        above = {"hyper": {name.removeprefix("hyper."): value}} if name.startswith("hyper.") else {name: value}
        fields = _over(fields, above)
    return fields
