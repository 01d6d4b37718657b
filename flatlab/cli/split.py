"""What `flatlab train` shows of a split instead of training: a table, a picture, a file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from flatlab.cli.pictures import save_picture
from flatlab.federated.config import RunConfig
from flatlab.federated.heterogeneity import Heterogeneity, heterogeneity
from flatlab.federated.partition import class_counts
from flatlab.federated.partition.file import write_split
from flatlab.federated.partition.names import partition_name
from flatlab.federated.world import make_world
from flatlab.terminal.console import console

WIDE = 20
"""Classes beyond which only the commonest of a client are listed."""

LISTED = 100
"""Clients beyond which a table shows every so-manieth one."""


def present_split(
    config: RunConfig, data_root: Path | None, show: bool, picture: Path | None, file: Path | None
) -> None:
    """Print, draw and save which samples each client has; raises `UsageError` for data and splits that are not."""
    world = make_world(config, data_root)
    counts = class_counts(world.data.train.labels, world.parts, world.data.classes)
    measured = heterogeneity(counts)
    parameter = partition_name(config).removeprefix(config.partition).removeprefix("-")
    rule = f"{config.partition.capitalize()}({parameter})" if parameter else config.partition.upper()
    title = f"{config.dataset}, {config.clients} clients, {rule}, seed {config.seed}"
    if show:
        _print_table(title, counts, measured)
    if picture is not None:
        from figures.client_split import draw_client_split
        from figures.drawing import Drawing
        from flatlab.runs.checkpoint import provenance

        def draw(_: object) -> Drawing:
            return draw_client_split(counts, measured.total_variation, measured.jensen_shannon, title, provenance())

        save_picture(draw, [], picture)
    if file is not None:
        write_split(file, world.data.train, world.parts)
        console.print(f"Split: [bold]{escape(str(file))}[/bold]", soft_wrap=True, highlight=False)


def write_shares(config: RunConfig, data_root: Path | None, folder: Path, nodes: int) -> None:
    """Write into `folder` what each of `nodes` nodes holds; raises `UsageError` for data and splits that are not."""
    from flatlab.federated.flower.share import save_shares

    for path in save_shares(folder, make_world(config, data_root), nodes):
        console.print(f"Share: [bold]{escape(str(path))}[/bold]", soft_wrap=True, highlight=False)


def _print_table(title: str, counts: NDArray[np.int64], measured: Heterogeneity) -> None:
    table = Table(title=escape(title), padding=(0, 0))
    for heading in ("client", "samples", "classes", "TV", "JS"):
        table.add_column(heading, justify="right")
    wide = counts.shape[1] > WIDE
    if wide:
        table.add_column("largest classes (class: samples)")
    else:
        for label in range(counts.shape[1]):
            table.add_column(str(label), justify="right")
    step = -(-len(counts) // LISTED)
    for k in range(0, len(counts), step):
        row = counts[k]
        cells = (
            [", ".join(f"{label}: {row[label]}" for label in (-row).argsort(kind="stable")[:8] if row[label])]
            if wide
            else [str(n) if n else "[dim]·[/dim]" for n in row]
        )
        distances = (f"{measured.total_variation[k]:.3f}", f"{measured.jensen_shannon[k]:.3f}")
        table.add_row(str(k), str(row.sum()), str((row > 0).sum()), *distances, *cells)
    console.print(table)
    if step > 1:
        console.print(f"Every {step}th of {len(counts)} clients is listed.")
    sizes = measured.sizes
    console.print(
        f"Distance of a client's classes from the whole, weighted by samples: total variation "
        f"{measured.mean(measured.total_variation):.3f}, Jensen-Shannon {measured.mean(measured.jensen_shannon):.3f} "
        f"bits. Sizes {sizes.min()} to {sizes.max()}, deviation {measured.size_variation:.0%} of the mean.",
        soft_wrap=True,
    )
