"""`flatlab doctor`: what flatlab finds here, on one screen."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flatlab.data.store import Place
    from flatlab.measuring.surroundings import Processor, Surroundings

SHOWN = 6
"""How many folders beside the known data sets are named."""


def doctor(
    data_root: Annotated[
        Path | None, typer.Option(help="Folder that holds local copies of data sets (or FLATLAB_DATA).")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write it to this file too; -: to standard output.")] = None,
) -> None:
    """Show versions, cores, kernels, devices, and where data are looked for; ends with 1 where something is wrong.

    Nothing is loaded, downloaded or written. Put what it prints into a report of a fault.
    """
    from rich.table import Table
    from rich.text import Text

    from flatlab.cli.console import write_json
    from flatlab.measuring.surroundings import examine
    from flatlab.terminal.console import console, say

    found = examine(data_root)
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")  # a long path stays whole
    for label, text in _lines(found):
        table.add_row(label, Text(text))  # a path may hold what rich takes for markup
    console.print(table, highlight=False)
    write_json(json, found.to_dict())
    for problem in found.problems:
        say(problem)
    if found.problems:
        raise typer.Exit(1)


def _lines(found: "Surroundings") -> Iterator[tuple[str, str]]:
    versions = found.versions
    changed = " and changes since" if versions["commit"].endswith("+") else ""
    yield "flatlab", f"{versions['flatlab']}, commit {versions['commit'][:12]}{changed}"
    yield "python", f"{versions['python']} on {versions['platform']}"
    yield "packages", ", ".join(f"{name} {versions[name]}" for name in ("torch", "numpy", "scipy", "pyhessian"))
    yield "extras", ", ".join(f"{name} {version or '(not installed)'}" for name, version in found.extras.items())
    yield from _processor_lines(found.processor)
    yield "devices", _devices(found)
    yield "data", _data_root(found)
    for name, place in found.data.items():
        yield "", f"{name}: {_place(place)}"
    yield "cache", found.cache
    if found.environment:
        yield "variables", "  ".join(f"{name}={value}" for name, value in found.environment.items())


def _processor_lines(cpu: "Processor") -> Iterator[tuple[str, str]]:
    yield "processor", f"{cpu.name}: {cpu.cores} of {cpu.all_cores} cores usable, torch threads: {cpu.threads}"
    has = [name for name, there in cpu.instructions.items() if there]
    lacks = [name for name, there in cpu.instructions.items() if not there]
    onednn = f"oneDNN may use {', '.join(has) or 'none of its fast instructions'}" if cpu.onednn else "no oneDNN"
    yield "kernels", f"torch's own {cpu.capability}; {onednn}" + (f" (no {', '.join(lacks)})" if lacks else "")
    yield "", "bfloat16 (precision=bf16) has instructions here" if cpu.bf16 else "bfloat16 (precision=bf16) is emulated"


def _devices(found: "Surroundings") -> str:
    if found.devices:
        gpus = (f"{one.name}, {one.memory / 2**30:.0f} GiB, CUDA {one.capability}" for one in found.devices)
        return "cpu; " + "; ".join(f"cuda:{i} {text}" for i, text in enumerate(gpus))
    return "cpu; " + ("no GPU is seen" if found.cuda else "torch is built without CUDA")


def _place(place: "Place") -> str:
    if not place.at_hand:
        return f"would come from the hub, {place.source}"
    return place.source + (", decoded" if place.decoded else "")


def _data_root(found: "Surroundings") -> str:
    if found.data_root is None:
        return "looked for in no folder: set FLATLAB_DATA, or give --data-root"
    more = len(found.others) - SHOWN
    others = ", ".join(found.others[:SHOWN]) + (f" and {more} more" if more > 0 else "")
    return f"looked for in {found.data_root}" + (f", which also has {others}" if others else "")
