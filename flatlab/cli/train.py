"""`flatlab train`: the options of one federated run."""

from pathlib import Path
from typing import Annotated

import typer

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
    from flatlab.cli.training import Execution, print_split, read_fields, train_run
    from flatlab.federated.config import RunConfig

    options = {name: value for name, value in context.params.items() if name in RunConfig.model_fields}
    run_config = read_fields(config, preset, options, settings or [], resume=resume, out=out)
    if show_split:
        print_split(run_config, data_root)
    else:
        execution = Execution(workers, engine, device, state, save_every, track_eigs, tensorboard)
        train_run(run_config, data_root, out, execution, json)
