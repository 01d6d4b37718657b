"""`flatlab presets`: the paper's cells, listed or printed as TOML."""

from typing import Annotated, Any

import typer

from flatlab.errors import UsageError


def presets(
    name: Annotated[str | None, typer.Argument(help="Print this preset as TOML, to be edited and used.")] = None,
    algorithm: Annotated[str, typer.Option(help="Algorithm of the cell.")] = "fedavg",
    man: Annotated[bool, typer.Option("--man/--no-man", help="The cell with MAN.")] = False,
) -> None:
    """List the paper's cells with their values, or print one: flatlab presets cifar100-dir0.3 > run.toml."""
    import tomli_w

    from flatlab.federated.config import make_config
    from flatlab.federated.presets import preset_fields

    if name is None and (algorithm != "fedavg" or man):
        raise UsageError("--algorithm and --man choose a cell of one preset: name the preset too.")
    if name is None:
        _print_tables()
    else:
        fields = preset_fields(name, algorithm, man)
        typer.echo(tomli_w.dumps(make_config(fields, f"the preset {name}").plain()), nl=False)


def _print_tables() -> None:
    from rich.table import Table

    from flatlab.federated.algorithms import ALGORITHMS
    from flatlab.federated.models import default_model
    from flatlab.federated.presets import COMMON, PRESETS, preset_hyper
    from flatlab.terminal.console import console

    table = Table(title="Presets", title_justify="left")
    for heading in ("preset", "data set", "partition", "model", "zeta"):
        table.add_column(heading)
    for name, preset in PRESETS.items():
        split = "IID" if preset.delta is None else f"Dirichlet({preset.delta})"
        model = default_model(preset.dataset, (3, 32, 32))
        table.add_row(name, preset.dataset, split, model, f"{preset.zeta:g}")
    console.print(table)

    table = Table(title="Hyperparameters", title_justify="left")
    for heading in ("algorithm", "values", "but", "source"):
        table.add_column(heading)
    for algorithm, rules in ALGORITHMS.items():
        usual = rules.hyper().model_dump()
        exceptions = []
        for name, preset in PRESETS.items():
            plain, man = (_differences(preset_hyper(preset, algorithm, man), usual) for man in (False, True))
            if plain == man != "":
                exceptions.append(f"{name}: {man}")
            else:
                exceptions += [f"{name}: {plain}"] if plain else []
                exceptions += [f"{name} with MAN: {man}"] if man else []
        table.add_row(algorithm, _differences(usual, {}) or "-", "\n".join(exceptions), rules.source)
    console.print(table)
    console.print("Common to all: " + ", ".join(f"{key} {value}" for key, value in COMMON.items()))
    console.print("One of them: flatlab train --preset cifar100-dir0.3 --algorithm feddyn --man")


def _differences(values: dict[str, Any], usual: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if usual.get(key) != value)
