"""`flatlab demo`: the whole story on the bundled digits, in under two minutes on two cores."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder of the demonstration; runs of an earlier one there are taken as they are.")
    ] = Path("checkpoints/demo"),
) -> None:
    """Train FedAvg on digits without and with MAN, measure both, and draw the comparison."""
    import time

    from figures.layers import draw_layers
    from flatlab.cli.console import console
    from flatlab.cli.eigs_table import print_eigs
    from flatlab.cli.reading import compare
    from flatlab.cli.sweep import measure
    from flatlab.cli.training import Execution, train_run
    from flatlab.federated.config import make_config
    from flatlab.measuring.eigs import Search, eigs_numbers
    from flatlab.measuring.subjects import Measurement
    from flatlab.runs.folder import RunFolder

    began = time.monotonic()
    configs = {name: make_config({"man": man}) for name, man in (("without-man", False), ("with-man", True))}
    for name, config in configs.items():
        RunFolder(out / name).require(config)  # before the first is trained: a run of the user's is left alone
    checkpoints = [train_run(config, None, out / name, Execution(), None) for name, config in configs.items()]
    search = Search()
    results = measure(
        "eigs",
        checkpoints,
        Measurement(),
        vars(search),
        lambda subject, tell: eigs_numbers(subject, search, tell),
        print_eigs,
    )
    without, with_man = results
    pictures = draw_layers([without, with_man], out / "layers")
    console.print(compare(without, with_man))
    console.print(f"Picture: [bold]{pictures[0]}[/bold] ({time.monotonic() - began:.0f} s in all)", soft_wrap=True)
