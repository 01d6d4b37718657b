"""What `flatlab train` and `flatlab demo` do: from options to a finished run, with its progress and its summary."""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from flatlab.cli.console import console, say, write_json
from flatlab.cli.progress import train_with_progress
from flatlab.cli.tracking import draw_run
from flatlab.cores import available_cores
from flatlab.data import absolute_name
from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig, make_config, parse_toml, read_config
from flatlab.federated.engine.base import Engine
from flatlab.federated.engine.batched import BatchedEngine
from flatlab.federated.engine.process import ProcessEngine
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.holding import MUCH, holding
from flatlab.federated.partition import class_counts
from flatlab.federated.precision import missing_kernels
from flatlab.federated.presets import preset_fields
from flatlab.federated.rounds import SAVE_SECONDS, Run, most_participants
from flatlab.federated.state import Place
from flatlab.federated.trial import statement, tried
from flatlab.federated.world import World, make_world, resolve
from flatlab.functions import require_named
from flatlab.malloc import keep_freed_memory
from flatlab.runs.fingerprint import data_digest, settled
from flatlab.runs.folder import RunFolder
from flatlab.runs.interruption import Terminated, exit_status, terminable
from flatlab.runs.metrics import Record


@dataclass(frozen=True)
class Execution:
    """Where and how a run is carried out; none of it changes the trained model."""

    workers: int | None = None
    engine: str = "auto"
    device: str = "auto"
    state: str = "memory"
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

    A resumed run takes what is not given from its own folder; where no run is there yet, `resume` makes no difference.
    Where a file names a function of the user's as the model, the options must name it too. Raises `UsageError`.
    """
    given = {name: value for name, value in options.items() if value is not None} | _parse_settings(settings)
    merged = _over(read_config(path) if path else {}, given)
    if preset:
        merged = _over(preset_fields(preset, merged.get("algorithm", "fedavg"), bool(merged.get("man"))), merged)
    source = f"{path} and the options" if path else "the options"
    folder = out or default_folder(make_config(merged, source))
    saved = RunFolder(folder).config() if resume else None
    if saved:
        below = saved.plain()
        if merged.get("algorithm", saved.algorithm) != saved.algorithm:
            del below["hyper"]  # another algorithm's
        merged = _over(below, merged)
    config = make_config(merged, source)
    if given.get("zeta") is not None and not config.man:
        raise UsageError("--zeta is the coefficient of MAN, which is off; add --man.")
    require_named(config.model, given.get("model"), f"The run in {folder}" if saved else f"The configuration {path}")
    return config.model_copy(update={"dataset": absolute_name(config.dataset)})


def default_folder(config: RunConfig) -> Path:
    """checkpoints/<dataset>-<algorithm>[-man][-zeta<zeta>][-<partition>]-s<seed>, without what is as by default."""
    usual = RunConfig()
    words = [Path(config.dataset).name, config.algorithm]
    if config.man:
        words += ["man"]
        words += [f"zeta{config.zeta:g}"] if config.zeta != usual.zeta else []
        words += [f"logits{config.zeta_logits:g}"] if config.zeta_logits else []
    if config.partition == "iid":
        words += ["iid"]
    elif config.delta != usual.delta:
        words += [f"dirichlet-{config.delta:g}"]
    return Path("checkpoints") / "-".join([*words, f"s{config.seed}"])


def train_run(
    config: RunConfig, data_root: Path | None, out: Path | None, execution: Execution, json: Path | None
) -> Path:
    """Carry out one run, or go on with it, with its progress display; returns the path of its final checkpoint.

    Raises `FlatlabError` (`UsageError` where the folder holds another run), and `SystemExit` with code 130 after Ctrl-C
    and 143 after SIGTERM, when it has said how to go on.
    """
    keep_freed_memory()
    folder = out or default_folder(config)
    _check(execution)
    began = time.monotonic()
    config = settled(config, data_root)
    files = RunFolder(folder)
    files.require(config)
    try:
        with terminable():
            last = _finished(files, config, data_root) or _train(files, config, data_root, execution)
    except KeyboardInterrupt as interruption:
        say(f"\n{_interrupted(files, config, interruption)}")
        raise SystemExit(exit_status(interruption)) from interruption
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
    _print_summary(config, last, seconds)
    write_json(json, summary)
    if execution.track_eigs and any("curvature" in record for record in files.metrics.read()):
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


def _finished(files: RunFolder, config: RunConfig, data_root: Path | None) -> Record | None:
    """The last evaluation of the run `config` where it is finished, which is said."""
    final = files.finished(config)
    if final is None:
        return None
    if final.data:
        files.require_data(config, final.data, data_digest(resolve(config, data_root)[1]))
    say(f"The run in {files.path} is this very one, and is finished.")
    return final.metrics


def _train(files: RunFolder, config: RunConfig, data_root: Path | None, execution: Execution) -> Record:
    """Begin the run in its folder, or go on with it; returns its last evaluation."""
    world = tried(make_world(config, data_root))
    if said := statement(world):
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    place: Place = "disk" if execution.state == "disk" else "memory"
    held = holding(config, world.layout.size)
    if held.bytes >= MUCH:
        say(held.sentence(place))
    with files.locked():
        run = Run(world, files.path, place)
        run.resume()
        if run.server.round:
            done = f"after round {run.server.round} of {config.rounds}"
            say(f"The run in {files.path} is this very one, cut off {done}: going on.")
        with _open_engine(world, execution) as engine:
            return train_with_progress(run, engine, execution.save_every, execution.track_eigs, execution.tensorboard)


def _interrupted(files: RunFolder, config: RunConfig, interruption: KeyboardInterrupt) -> str:
    """What is left of the run, and how to go on."""
    what = "Terminated" if isinstance(interruption, Terminated) else "Interrupted"
    if files.resume_file.exists():
        return f"{what}. Go on with: flatlab train --resume --out {files.path}{_own_model(config)}"
    return f"{what} before the first round ended: give the same command again."


def _open_engine(world: World, execution: Execution) -> Engine:
    device = "cuda" if execution.device != "cpu" and torch.cuda.is_available() else "cpu"
    if note := missing_kernels(world.config.precision, torch.device(device)):
        say(note)
    if execution.engine == "batched" or (execution.engine == "auto" and device == "cuda"):
        return BatchedEngine(world, torch.device(device))
    slots = most_participants(world.config)
    workers = min(execution.workers or available_cores(), slots)
    return SequentialEngine(world) if workers == 1 else ProcessEngine(world, workers, slots)


def _print_summary(config: RunConfig, last: Record, seconds: float) -> None:
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


def _check(execution: Execution) -> None:
    choices = {"state": ("memory", "disk"), "engine": ("auto", "process", "batched"), "device": ("auto", "cpu", "cuda")}
    for option, allowed in choices.items():
        value = getattr(execution, option)
        if value not in allowed:
            raise UsageError(f"--{option} is one of {', '.join(allowed)}, not {value!r}.")
    if execution.device == "cuda" and execution.engine == "process":
        raise UsageError("--engine process trains on the CPU; leave --device out, or use --engine batched.")
    if execution.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("There is no CUDA device here; leave --device out to use the CPU.")


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
