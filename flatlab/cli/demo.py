"""`flatlab demo`: the whole story on the bundled digits, in under two minutes on two cores."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demonstration; an earlier one there is replaced.")] = Path(
        "checkpoints/demo"
    ),
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

    began = time.monotonic()
    checkpoints = []
    for name, man in (("without-man", False), ("with-man", True)):
        _remove_run(out / name)
        checkpoints.append(train_run(make_config({"man": man}), None, out / name, Execution(), None))
    results = measure(
        "eigs", checkpoints, Measurement(), lambda subject, tell: eigs_numbers(subject, Search(), tell), None
    )
    print_eigs(results)
    without, with_man = results
    pictures = draw_layers([without, with_man], out / "layers")
    console.print(compare(without, with_man))
    console.print(f"Picture: [bold]{pictures[0]}[/bold] ({time.monotonic() - began:.0f} s in all)", soft_wrap=True)


def _remove_run(folder: Path) -> None:
    """Delete an earlier demonstration, and nothing that is not one."""
    import shutil

    if (folder / "config.toml").exists():
        shutil.rmtree(folder)
