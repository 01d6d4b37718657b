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
from flatlab.cli.options import choice
from flatlab.cli.run_plan import print_plan
from flatlab.federated.engine import ENGINES

if TYPE_CHECKING:
    from flatlab.federated.config import RunConfig
    from flatlab.federated.execution import Execution
    from flatlab.federated.rounds import Run
    from flatlab.runs.folder import RunFolder
    from flatlab.runs.metrics import Record

_DATA, _METHOD, _RUN = "Data", "Method", "Run"

SPLITS = ("iid", "dirichlet", "classes", "shards", "lognormal-sizes", "dirichlet-sizes", "column", "file")
"""The names in `federated.partition.KINDS`, since importing them imports torch."""


def registered_algorithms() -> list[str]:
    """The names of the algorithms, read off their files, since importing them imports torch."""
    folder = Path(__file__).parent.parent / "federated" / "algorithms"
    return sorted(file.stem for file in folder.glob("*.py") if file.stem not in ("__init__", "base"))


def train(
    context: typer.Context,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="digits, cifar10, cifar100, tiny-imagenet, fashion-mnist, a hub name, a folder, or "
            "package.module:function, which returns (train, test).",
            rich_help_panel=_DATA,
        ),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Folder that holds local copies of data sets (or FLATLAB_DATA).", rich_help_panel=_DATA),
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.", rich_help_panel=_DATA)] = None,
    hub_config: Annotated[
        str | None, typer.Option(help="Configuration of a data set on the hub.", rich_help_panel=_DATA)
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(help="Share of the training split to test on, in place of a test split.", rich_help_panel=_DATA),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Scale images to this height and width.", rich_help_panel=_DATA)
    ] = None,
    augmentation: Annotated[
        str | None,
        choice("auto", "none", "flip-crop", help="Of training images; auto: as usual for them.", rich_help_panel=_DATA),
    ] = None,
    clients: Annotated[int | None, typer.Option(help="Number of clients.", rich_help_panel=_DATA)] = None,
    partition: Annotated[
        str | None,
        choice(*SPLITS, help="How the training set is split.", rich_help_panel=_DATA),
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Concentration of the Dirichlet splits.", rich_help_panel=_DATA)
    ] = None,
    classes_per_client: Annotated[
        int | None, typer.Option(help="Classes of each client, of the split by classes.", rich_help_panel=_DATA)
    ] = None,
    shards_per_client: Annotated[
        int | None, typer.Option(help="Pieces of each client, of the split by shards.", rich_help_panel=_DATA)
    ] = None,
    sigma: Annotated[
        float | None, typer.Option(help="Deviation of the logarithm of sizes.", rich_help_panel=_DATA)
    ] = None,
    partition_column: Annotated[
        str | None, typer.Option(help="Column whose values are the clients.", rich_help_panel=_DATA)
    ] = None,
    partition_file: Annotated[
        str | None, typer.Option(help="JSON file of client: indices, as --save-split writes.", rich_help_panel=_DATA)
    ] = None,
    show_split: Annotated[
        bool,
        typer.Option("--show-split", help="Print what each client holds, and leave.", rich_help_panel=_DATA),
    ] = False,
    draw_split: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Draw it into PATH.png, .pdf and .csv, and leave.", rich_help_panel=_DATA),
    ] = None,
    save_split: Annotated[
        Path | None, typer.Option(help="Write client: indices to this JSON file, and leave.", rich_help_panel=_DATA)
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what would be trained, what it holds and about how long it takes.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="mlp, cifar-cnn, tiny-convnet, resnet18-gn, or package.module:function, called as "
            "function(input_shape=(channels, height, width), classes=...).",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(registered_algorithms())}.",
            autocompletion=lambda: registered_algorithms(),
            rich_help_panel=_METHOD,
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
        choice(
            "auto",
            *ENGINES,
            help="Worker processes, or all clients of a round as one stack, for a GPU.",
            rich_help_panel=_RUN,
        ),
    ] = "auto",
    device: Annotated[
        str,
        choice("auto", "cpu", "cuda", help="For the batched engine.", rich_help_panel=_RUN),
    ] = "auto",
    track_eigs: Annotated[
        int | None,
        typer.Option(min=1, help="Record top eigenvalues of the server model every N rounds.", rich_help_panel=_RUN),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard event files into the run.", rich_help_panel=_RUN)
    ] = False,
    state: Annotated[
        str,
        choice("memory", "disk", help="Where the clients' own vectors are kept.", rich_help_panel=_RUN),
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
    if show_split or draw_split or save_split:
        from flatlab.cli.split import present_split

        present_split(run_config, data_root, show_split, draw_split, save_split)
    elif dry_run:
        print_plan(run_config, out, data_root)
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
    following = f"flatlab eigs {files.final}{_own_functions(config)}"
    console.print(f"Checkpoint: [bold]{files.final}[/bold]\nNext:       [bold]{following}[/bold]", soft_wrap=True)
    return files.final


def _interrupted(files: "RunFolder", config: "RunConfig", interruption: KeyboardInterrupt) -> str:
    """What is left of the run, and how to go on."""
    from flatlab.runs.interruption import Terminated

    what = "Terminated" if isinstance(interruption, Terminated) else "Interrupted"
    if files.resume_file.exists():
        return f"{what}. Go on with: flatlab train --resume --out {files.path}{_own_functions(config)}"
    return f"{what} before the first round ended: give the same command again."


def _print_summary(config: "RunConfig", last: "Record", seconds: float) -> None:
    from figures.labels import REPORTED

    reported = config.report if config.report in last["models"] else "server"
    title = f"{config.algorithm}{f' + MAN (zeta {config.zeta:g})' if config.man else ''} on {config.dataset}"
    if config.precision != "ieee":
        title += f", trained in {config.precision}"
    table = Table(title=title, title_justify="left")
    for heading in ("model", "test accuracy", "test loss", "|a|², summed over layers"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, result in last["models"].items():
        norms = result["activation_norms"]
        mark = " *" if name == reported else ""
        table.add_row(f"{name}{mark}", f"{result['accuracy']:.2%}", f"{result['loss']:.4f}", f"{sum(norms):.4g}")
    console.print(table)
    lines = [f"{name}: {REPORTED[name]}." for name in last["models"]]
    lines.append("* the model that this run reports, and that is measured by the commands.")
    lines += [f"{config.rounds} rounds, clients' own loss in training {last['train_loss']:.4f}, {seconds:.1f} s"]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _own_functions(config: "RunConfig") -> str:
    """What a command on this run must add where its model or its data set is a function of the user's."""
    from flatlab.functions import names_function

    named = {"model": config.model} if ":" in config.model else {}
    named |= {"dataset": config.dataset} if names_function(config.dataset) else {}
    return "".join(f" --{option} {shlex.quote(name)}" for option, name in named.items())


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
    from flatlab.files import write_files
    from flatlab.runs.checkpoint import provenance

    drawing = draw_tracking({files.path.name: files.metrics.read()}, provenance())
    return write_files(files.path / "tracking", drawing.files())[0]
