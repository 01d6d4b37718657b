"""`flatlab train`: one federated run, with its progress and its summary."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flatlab.cli.console import console, say, write_json

if TYPE_CHECKING:
    from flatlab.federated.config import RunConfig
    from flatlab.federated.execution import Execution
    from flatlab.federated.rounds import Run
    from flatlab.runs.folder import RunFolder
    from flatlab.runs.metrics import Record

_DATA, _METHOD, _RUN = "Data", "Method", "Run"


def train(
    context: typer.Context,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="digits, cifar10, cifar100, tiny-imagenet, fashion-mnist, a hub name, or a folder.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Folder that holds local copies of data sets (or FLATLAB_DATA).", rich_help_panel=_DATA),
    ] = None,
    clients: Annotated[int | None, typer.Option(help="Number of clients.", rich_help_panel=_DATA)] = None,
    partition: Annotated[str | None, typer.Option(help="iid or dirichlet.", rich_help_panel=_DATA)] = None,
    delta: Annotated[
        float | None, typer.Option(help="Concentration of the Dirichlet split.", rich_help_panel=_DATA)
    ] = None,
    show_split: Annotated[
        bool, typer.Option("--show-split", help="Print the clients x classes table and leave.", rich_help_panel=_DATA)
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="mlp, cifar-cnn, tiny-convnet, resnet18-gn, or package.module:function.", rich_help_panel=_METHOD
        ),
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(
            help="fedavg, fedprox, scaffold, fedsam, fedasam, feddyn, feddc or fedspeed.", rich_help_panel=_METHOD
        ),
    ] = None,
    man: Annotated[
        bool | None,
        typer.Option("--man/--no-man", help="Add the layerwise activation norm to the loss.", rich_help_panel=_METHOD),
    ] = None,
    zeta: Annotated[float | None, typer.Option(help="Coefficient of MAN.", rich_help_panel=_METHOD)] = None,
    rounds: Annotated[int | None, typer.Option(help="Communication rounds.", rich_help_panel=_METHOD)] = None,
    participation: Annotated[
        float | None, typer.Option(help="Share of the clients in a round, in (0, 1].", rich_help_panel=_METHOD)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the first round.", rich_help_panel=_METHOD)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.", rich_help_panel=_METHOD)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any other field of config.toml, as batch_size=50 or hyper.rho=0.1; may be repeated.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="A cell of the paper, see flatlab presets.", rich_help_panel=_METHOD)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file of fields; options win over it.", rich_help_panel=_RUN)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run (default: in checkpoints/, named after what sets it apart).", rich_help_panel=_RUN
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Take what is not given from the run in that folder, if there is one.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes (default: one per core).", rich_help_panel=_RUN)
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="auto, process (worker processes) or batched (all clients of a round as one stack, for a GPU).",
            rich_help_panel=_RUN,
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda, for the batched engine.", rich_help_panel=_RUN)] = "auto",
    track_eigs: Annotated[
        int | None,
        typer.Option(min=1, help="Record top eigenvalues of the server model every N rounds.", rich_help_panel=_RUN),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard event files into the run.", rich_help_panel=_RUN)
    ] = False,
    state: Annotated[
        str, typer.Option(help="Where the clients' own vectors are kept: memory or disk.", rich_help_panel=_RUN)
    ] = "memory",
    save_every: Annotated[
        float, typer.Option(min=0, help="Seconds between saves of what a crash must not cost.", rich_help_panel=_RUN)
    ] = 20.0,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file too.", rich_help_panel=_RUN)] = None,
) -> None:
    """Train one federated run; without options: FedAvg on the bundled digits, in seconds.

    Prints where the checkpoint is, and the line that measures it. The same line again goes on where the run was cut
    off; a folder with another run is left as it is.
    """
    from flatlab.federated.config import RunConfig
    from flatlab.federated.execution import Execution
    from flatlab.federated.request import read_fields

    options = {name: value for name, value in context.params.items() if name in RunConfig.model_fields}
    run_config = read_fields(config, preset, options, settings or [], resume=resume, out=out)
    if show_split:
        print_split(run_config, data_root)
    else:
        execution = Execution(workers, engine, device, state, save_every, track_eigs)
        train_run(run_config, out, execution, data_root=data_root, tensorboard=tensorboard, json=json)


def train_run(
    config: "RunConfig",
    out: Path | None = None,
    execution: "Execution | None" = None,
    *,
    data_root: Path | None = None,
    tensorboard: bool = False,
    json: Path | None = None,
) -> Path:
    """Carry out one run, or go on with it, with its progress display; returns the path of its final checkpoint.

    Raises `FlatlabError` (`UsageError` where the folder holds another run), and `SystemExit` with code 130 after Ctrl-C
    and 143 after SIGTERM, when it has said how to go on.
    """
    from flatlab.cli.progress import bar
    from flatlab.federated.execution import Execution, carry_out
    from flatlab.federated.trial import statement
    from flatlab.measuring.probe import curvature_probe
    from flatlab.runs.folder import RunFolder, default_folder
    from flatlab.runs.interruption import exit_status

    execution = execution or Execution()
    files = RunFolder(out or default_folder(config))
    began = time.monotonic()

    @contextmanager
    def watch(run: "Run") -> Iterator[Callable[["Record"], None]]:
        if said := statement(run.world):
            console.print(said, markup=False, highlight=False, soft_wrap=True)
        with bar(run, tensorboard) as on_round:
            yield on_round

    try:
        last = carry_out(
            config,
            files.path,
            execution,
            data_root=data_root,
            tell=say,
            watch=watch,
            make_probe=curvature_probe,
        )
    except KeyboardInterrupt as interruption:
        say(f"\n{_interrupted(files, config, interruption)}")
        raise SystemExit(exit_status(interruption)) from interruption
    seconds = time.monotonic() - began
    _print_summary(config, last, seconds)
    summary = {name: last[name] for name in ("test_accuracy", "train_loss", "images_per_second")}
    write_json(json, {"checkpoint": str(files.final), "rounds": config.rounds, **summary, "seconds": seconds})
    tracked = [record["curvature"] for record in files.metrics.read() if "curvature" in record]
    if execution.track_eigs and tracked:
        console.print(f"Eigenvalues: [bold]{_draw_tracking(files)}[/bold]", soft_wrap=True)
        _warn_of_unconverged([value for one in tracked for value in (one["global"], *one["layers"].values())])
    following = f"flatlab eigs {files.final}{_own_model(config)}"
    console.print(f"Checkpoint: [bold]{files.final}[/bold]\nNext:       [bold]{following}[/bold]", soft_wrap=True)
    return files.final


def print_split(config: "RunConfig", data_root: Path | None) -> None:
    """Print how many samples of each class each client holds."""
    from flatlab.federated.partition import class_counts
    from flatlab.federated.world import make_world

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


def _interrupted(files: "RunFolder", config: "RunConfig", interruption: KeyboardInterrupt) -> str:
    """What is left of the run, and how to go on."""
    from flatlab.runs.interruption import Terminated

    what = "Terminated" if isinstance(interruption, Terminated) else "Interrupted"
    if files.resume_file.exists():
        return f"{what}. Go on with: flatlab train --resume --out {files.path}{_own_model(config)}"
    return f"{what} before the first round ended: give the same command again."


def _print_summary(config: "RunConfig", last: "Record", seconds: float) -> None:
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


def _own_model(config: "RunConfig") -> str:
    """What a command on this run must add where its model is a function of the user's."""
    return f" --model {shlex.quote(config.model)}" if ":" in config.model else ""


def _warn_of_unconverged(values: Sequence[Mapping[str, Any]]) -> None:
    from figures.unconverged import is_unconverged

    if count := sum(map(is_unconverged, values)):
        console.print(
            f"! {count} of {len(values)} tracked eigenvalues are not converged, or larger ones are not excluded: "
            "hollow in the figure, with converged = false in metrics.jsonl.",
            soft_wrap=True,
        )


def _draw_tracking(files: "RunFolder") -> Path:
    """Draw eigenvalue and accuracy against rounds from the run's own metrics; returns the picture's path."""
    from figures.tracked_eigenvalues import draw_tracking
    from flatlab.runs.checkpoint import provenance

    return draw_tracking({files.path.name: files.metrics.read()}, files.path / "tracking", provenance())[0]
