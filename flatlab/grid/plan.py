"""A grid of runs, as TOML: methods x MAN x partitions x seeds, what they share, and what is measured of each.

    title = "..."
    preset = "cifar100"              # every cell starts from the paper's preset for this data set and its partition
    target_accuracy = 0.5            # "rounds to target" counts to the first evaluation at or above it

    [common]                         # fields of RunConfig; they win over the preset
    rounds = 500

    [axes]
    algorithms = ["fedavg", "fedsam"]
    man = [false, true]
    partitions = ["dirichlet-0.3", "iid"]
    seeds = [0, 1, 2]

    [sensitivity]                    # optional: the first algorithm with MAN on the first partition, at other zetas
    zetas = [0.05, 0.5]

    [measure]
    samples = 500

A cell is one run in a folder of its own; it is called after its algorithm, MAN, partition (where the grid has several)
and seed: `fedavg-man-dirichlet-0.3-s0`.
"""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig, make_config
from flatlab.federated.presets import preset_fields

Kind = Literal["eigs", "trace", "density", "surface", "split", "training"]
"""What is measured of a trained cell: "split" counts its clients' labels, "training" takes eigenvalues of its earlier
checkpoints; the others are the commands of that name."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    name: str
    config: RunConfig
    kinds: tuple[Kind, ...]


class Axes(BaseModel):
    """What varies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithms: tuple[str, ...] = Field(min_length=1)
    man: tuple[bool, ...] = Field((False, True), min_length=1)
    partitions: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)

    @field_validator("partitions")
    @classmethod
    def _partitions_are_known(cls, partitions: tuple[str, ...]) -> tuple[str, ...]:
        for partition in partitions:
            partition_fields(partition)
        return partitions


class Sensitivity(BaseModel):
    """Further coefficients of MAN, for the first algorithm on the first partition, at every seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    zetas: tuple[float, ...] = ()


class Measure(BaseModel):
    """How exactly curvature is measured; see the commands `eigs`, `trace`, `density` and `surface`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(500, ge=1, description="training samples of the loss, class-balanced")
    trace_tol: float = Field(0.02, gt=0, lt=1, description="standard error of the trace, as a share of it")
    density_depth: int = Field(40, ge=2, description="Lanczos products per probe of the density")
    density_probes: int = Field(5, ge=1, description="random vectors of the density")
    surface_points: int = Field(21, ge=2, description="points along each side of the loss surface")


class Grid(BaseModel):
    """A grid as it is written; `grid_cells` are its runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    preset: Literal["cifar10", "cifar100", "tiny-imagenet"] | None = None
    target_accuracy: float | None = Field(None, gt=0, lt=1)
    target_note: str = Field("", description="why this target; printed below the table")
    common: dict[str, Any] = {}
    axes: Axes
    sensitivity: Sensitivity = Sensitivity()
    measure: Measure = Measure()


def grid_cells(grid: Grid) -> tuple[Cell, ...]:
    """Every run of the grid once, seed by seed, so that a grid cut short has whole tables of fewer seeds.

    Raises `UsageError` naming the field that does not fit.
    """
    axes, zetas = grid.axes, grid.sensitivity.zetas
    cells: dict[str, Cell] = {}
    for seed in axes.seeds:
        main = [
            _cell(grid, algorithm, man, partition, seed)
            for partition in axes.partitions
            for algorithm in axes.algorithms
            for man in axes.man
        ]
        other = [_cell(grid, axes.algorithms[0], zeta > 0, axes.partitions[0], seed, zeta or None) for zeta in zetas]
        for cell in main + other:
            cells.setdefault(cell.name, cell)
    return tuple(cells.values())


def _cell(grid: Grid, algorithm: str, man: bool, partition: str, seed: int, zeta: float | None = None) -> Cell:
    source = f"the grid {grid.title!r}"
    preset = _preset(grid, algorithm, man, partition)
    fields = {
        **preset,
        **grid.common,
        **partition_fields(partition),
        "algorithm": algorithm,
        "man": man,
        "seed": seed,
        "hyper": {**preset.get("hyper", {}), **grid.common.get("hyper", {})},
    }
    usual = make_config(fields, source)
    config = usual if zeta is None else make_config({**fields, "zeta": zeta}, source)
    sensitivity = config.zeta != usual.zeta
    words = [algorithm]
    words += ["man"] if man else []
    words += [f"zeta{config.zeta:g}"] if sensitivity else []
    words += [partition] if len(grid.axes.partitions) > 1 else []
    first = algorithm == grid.axes.algorithms[0] and seed == grid.axes.seeds[0] and not sensitivity
    kinds: list[Kind] = ["eigs", "trace"]
    kinds += [] if sensitivity else ["density"]
    kinds += ["split"] if first and not man else []
    kinds += ["surface", "training"] if first and partition == grid.axes.partitions[0] else []
    return Cell("-".join([*words, f"s{seed}"]), config, tuple(kinds))


def _preset(grid: Grid, algorithm: str, man: bool, partition: str) -> dict[str, Any]:
    if grid.preset is None:
        return {}
    return preset_fields(f"{grid.preset}-{partition.replace('dirichlet-', 'dir')}", algorithm, man)


def partition_name(config: RunConfig) -> str:
    """Return "iid" or "dirichlet-<delta>"."""
    return "iid" if config.partition == "iid" else f"dirichlet-{config.delta:g}"


def partition_fields(name: str) -> dict[str, Any]:
    """Return the fields that `name` ("iid" or "dirichlet-0.3") stands for; raises `ValueError` for another."""
    rule, _, delta = name.partition("-")
    if name == "iid":
        return {"partition": "iid"}
    try:
        return {"partition": {"dirichlet": "dirichlet"}[rule], "delta": float(delta)}
    except (KeyError, ValueError) as error:
        raise ValueError(f"a partition is iid or dirichlet-<delta>, as in dirichlet-0.3, not {name!r}") from error


def shipped_grids() -> list[str]:
    """Names of the grids that come with flatlab."""
    return sorted(file.name.removesuffix(".toml") for file in files("flatlab.grid").joinpath("shipped").iterdir())


def read_grid_text(name: str) -> str:
    """Return the TOML of a shipped grid, or of the file `name`; raises `UsageError` if there is neither."""
    if name in shipped_grids():
        return files("flatlab.grid").joinpath("shipped", f"{name}.toml").read_text(encoding="utf-8")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(shipped_grids())
        raise UsageError(f"There is no grid {name!r}: name one of {known}, or a TOML file.") from error


def parse_grid(text: str, source: str) -> Grid:
    """Validate a grid's TOML, its cells included; raises `UsageError` naming `source` and the field."""
    try:
        grid = Grid.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The grid {source} is not valid TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        reason = reason[0].lower() + reason[1:]
        raise UsageError(f"In the grid {source}, {field} does not fit: {reason}.") from error
    grid_cells(grid)
    return grid
