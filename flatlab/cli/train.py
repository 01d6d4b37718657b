"""`flatlab train`: the options of one federated run."""

from pathlib import Path
from typing import Annotated

import typer

from flatlab.cli.options import choice, folder
from flatlab.cli.run_plan import print_plan
from flatlab.cli.used import require_used
from flatlab.cli.watched_run import train_run
from flatlab.federated.engine import ENGINES
from flatlab.trackers import TRACKERS

_DATA, _METHOD, _RUN = "Data", "Method", "Run"

SPLITS = ("iid", "dirichlet", "classes", "shards", "lognormal-sizes", "dirichlet-sizes", "column", "file")
"""The names in `federated.partition.KINDS`, since importing them imports torch."""


def registered_algorithms() -> list[str]:
    """The names of the algorithms, read off their files, since importing them imports torch."""
    folder = Path(__file__).parent.parent / "federated" / "algorithms"
    return sorted(file.stem.replace("_", "-") for file in folder.glob("*.py") if file.stem not in ("__init__", "base"))


def train(
    context: typer.Context,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="digits, cifar10, cifar100, tiny-imagenet, fashion-mnist, a hub name, a folder, a CSV or Parquet "
            "file, or package.module:function, which returns (train, test).",
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
    save_shares: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write there what each of --workers nodes holds, for flatlab node, and leave.",
            rich_help_panel=_DATA,
        ),
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
            help=f"{', '.join(registered_algorithms())}, or package.module:ALGORITHM of your own.",
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
            metavar="PATH",
            parser=folder,
            help="Folder of the run (default: in checkpoints/, named after data, algorithm, MAN, split and seed).",
            rich_help_panel=_RUN,
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
        int | None,
        typer.Option(
            min=1, help="Worker processes, or nodes (default: one per core; 2 of --save-shares).", rich_help_panel=_RUN
        ),
    ] = None,
    engine: Annotated[
        str,
        choice(
            "auto",
            *ENGINES,
            help="Worker processes; on a GPU each client on a stream, or all as one stack; nodes over Flower.",
            rich_help_panel=_RUN,
        ),
    ] = "auto",
    device: Annotated[
        str,
        choice(
            "auto",
            "cpu",
            "cuda",
            help="For the engines streams and batched, and their --track-eigs.",
            rich_help_panel=_RUN,
        ),
    ] = "auto",
    superlink: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of a SuperLink in Flower's configuration, or simulation; without it, one is started here.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    patience: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds that a round waits for a node that died (default: 300).", rich_help_panel=_RUN
        ),
    ] = None,
    track_eigs: Annotated[
        int | None,
        typer.Option(min=1, help="Record top eigenvalues of the server model every N rounds.", rich_help_panel=_RUN),
    ] = None,
    keep_clients: Annotated[
        str | None,
        typer.Option(
            metavar="ROUND,...",
            help="Keep the models of these rounds' clients, for flatlab clients.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"Send the numbers to {', '.join(TRACKERS)}; may be repeated.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="The same as --track tensorboard.", rich_help_panel=_RUN)
    ] = False,
    state: Annotated[
        str,
        choice("memory", "disk", help="Where the clients' own vectors are kept.", rich_help_panel=_RUN),
    ] = "memory",
    save_every: Annotated[
        float, typer.Option(min=0, help="Seconds between saves of what a crash must not cost.", rich_help_panel=_RUN)
    ] = 60.0,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file too.", rich_help_panel=_RUN)] = None,
) -> None:
    """Train one federated run; without options: FedAvg on the bundled digits, in seconds.

    Prints where the checkpoint is, and the line that measures it. The same line again goes on where the run was cut
    off; a folder with another run is left as it is.
    """
    from flatlab.federated.config import RunConfig
    from flatlab.federated.execution import Execution, read_rounds
    from flatlab.federated.request import read_fields
    from flatlab.trackers.follower import read_trackers

    require_used(context)
    options = {name: value for name, value in context.params.items() if name in RunConfig.model_fields}
    run_config = read_fields(config, preset, options, settings or [], resume=resume, out=out, data_root=data_root)
    kept = read_rounds(keep_clients)
    execution = Execution(workers, engine, device, state, save_every, track_eigs, kept, superlink, patience)
    execution.require_rounds(run_config)
    trackers = read_trackers([*(track or ()), *(["tensorboard"] if tensorboard else [])])
    if show_split or draw_split or save_split:
        from flatlab.cli.split import present_split

        present_split(run_config, data_root, show_split, draw_split, save_split)
    elif save_shares:
        from flatlab.cli.split import write_shares

        write_shares(run_config, data_root, save_shares, workers or 2)
    elif dry_run:
        print_plan(run_config, out, data_root)
    else:
        train_run(run_config, out, execution, data_root=data_root, track=trackers, json=json)
