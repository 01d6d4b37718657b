"""`flatlab demo`: the whole story on the bundled digits, in under two minutes on two cores."""

from pathlib import Path
from typing import Annotated, Any

import typer

from figures.decimals import factor_shown
from flatlab.cli.options import folder


def demo(
    out: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            parser=folder,
            help="Folder of the demonstration; runs of an earlier one there are taken as they are.",
        ),
    ] = Path("checkpoints/demo"),
) -> None:
    """Train FedAvg on digits without and with MAN, measure both, and draw the comparison."""
    import time

    from figures.layer_eigenvalues import draw_layers
    from flatlab.cli.eigs_table import print_eigs
    from flatlab.cli.sweep import measure
    from flatlab.cli.watched_run import train_run
    from flatlab.federated.config import make_config
    from flatlab.files import write_files
    from flatlab.measuring.eigs import Search, measure_eigs
    from flatlab.measuring.subjects import Measurement
    from flatlab.runs.folder import RunFolder
    from flatlab.terminal.console import console

    began = time.monotonic()
    configs = {name: make_config({"man": man}) for name, man in (("without-man", False), ("with-man", True))}
    for name, config in configs.items():
        RunFolder(out / name).require(config)  # before the first is trained: a run of the user's is left alone
    checkpoints = [train_run(config, out / name) for name, config in configs.items()]
    search = Search()
    results = measure(
        "eigs",
        checkpoints,
        Measurement(),
        search.settings,
        lambda subject, tell: measure_eigs(subject, search, tell),
        print_eigs,
    )
    without, with_man = results
    pictures = write_files(out / "layers", draw_layers([without, with_man]).files())
    console.print(comparison(without, with_man))
    console.print(f"Picture: [bold]{pictures[0]}[/bold] ({time.monotonic() - began:.0f} s in all)", soft_wrap=True)


def comparison(without: dict[str, Any], with_man: dict[str, Any]) -> str:
    """Say what changed from a run without MAN to the one with it, from their saved `eigs` results."""
    pairs = list(zip(without["layers"], with_man["layers"], strict=True))
    hidden = pairs[:-1]
    norms = [sum(layer[side]["output_norm2"] or 0.0 for layer in hidden) for side in (0, 1)]
    tops = [_top(result["global"]) for result in (without, with_man)]
    accuracies = [result["run"]["metrics"]["test_accuracy"] for result in (without, with_man)]
    fell = [a["name"] for a, b in pairs if _top(b) < _top(a)]
    rose = [a["name"] for a, b in pairs if _top(b) >= _top(a)]
    return (
        f"With MAN, mean |a|² of the hidden layers {_change(*norms)}; "
        f"the top eigenvalue of the network {_change(*tops)}; "
        f"of its layers, {_list(fell)} fell and {_list(rose)} did not; "
        f"test accuracy went from {accuracies[0]:.2%} to {accuracies[1]:.2%}. "
        "This is one seed: flatlab verify --study asks whether it holds over many."
    )


def _top(entry: dict[str, Any]) -> float:
    return float(entry["eigenvalues"][0]["value"])


def _change(before: float, after: float) -> str:
    verb = "fell" if after < before else "rose"
    return f"{verb} from {before:.4g} to {after:.4g} (x {factor_shown(after / before)})"


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"
