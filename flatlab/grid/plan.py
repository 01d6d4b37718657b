"""A grid of runs, as TOML: methods x MAN x partitions x seeds, what they share, and what is measured of each.

    title = "..."
    preset = "cifar100"              # every cell starts from the paper's preset for this data set and its partition
    target_accuracy = 0.5            # "rounds to target" counts to the first evaluation at or above it

    [common]                         # fields of RunConfig; they win over the preset
    rounds = 500

    [hyper.fedsam]                   # optional: hyperparameters of one of the algorithms, which win over all others
    rho = 0.05

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

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from flatlab.errors import UsageError, shown
from flatlab.federated.complaints import field_and_reason
from flatlab.federated.config import MOST, PARTS_OF_MAN, RunConfig, make_config
from flatlab.federated.config_file import parse_toml
from flatlab.federated.own_algorithm import short_name
from flatlab.federated.partition.names import partition_fields
from flatlab.federated.presets import preset_fields
from flatlab.federated.spelling import in_words
from flatlab.functions import require_let_run, require_named
from flatlab.grid.shipped import shipped_grid_text, shipped_grids

Kind = Literal["eigs", "trace", "density", "surface", "split", "training", "flatness", "local"]
"""What is measured of a trained cell: "split" counts its clients' labels, "training" takes eigenvalues of its earlier
checkpoints, "flatness" is `trace --flatness`, "local" is `clients`; the others are the commands of that name."""

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

MOST_CELLS = 100_000
"""Of a grid; more were a slip of the pen."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    name: str
    config: RunConfig
    kinds: tuple[Kind, ...]
    measure: "Measure"


class Axes(BaseModel):
    """What varies."""

    model_config = _STRICT

    algorithms: tuple[str, ...] = Field(min_length=1, strict=False)
    man: tuple[bool, ...] = Field((False, True), min_length=1, strict=False)
    partitions: tuple[str, ...] = Field(min_length=1, strict=False)
    seeds: tuple[int, ...] = Field(min_length=1, strict=False)

    @field_validator("partitions")
    @classmethod
    def _partitions_are_known(cls, partitions: tuple[str, ...]) -> tuple[str, ...]:
        for partition in partitions:
            partition_fields(partition)
        return partitions


class Sensitivity(BaseModel):
    """Further coefficients of MAN, for the first algorithm on the first partition, at every seed."""

    model_config = _STRICT

    zetas: tuple[Annotated[float, Field(ge=0)], ...] = Field((), strict=False)


class Measure(BaseModel):
    """How exactly curvature is measured; see the commands `eigs`, `trace`, `density` and `surface`."""

    model_config = _STRICT

    samples: int = Field(500, ge=1, le=MOST, description="training samples of the loss, class-balanced")
    trace_tol: float = Field(0.02, gt=0, lt=1, description="standard error of the trace, as a share of it")
    density_depth: int = Field(40, ge=2, le=10_000, description="Lanczos products per probe of the density")
    density_probes: int = Field(5, ge=1, le=100_000, description="random vectors of the density")
    surface_points: int = Field(21, ge=2, le=1000, description="points along each side of the loss surface")
    flatness: bool = Field(False, description="the measures of trace --flatness, with the worst case in linf")
    keep_clients: tuple[Annotated[int, Field(ge=1, le=MOST)], ...] = Field(
        (), strict=False, description="rounds whose clients' own models are kept and measured"
    )
    local_clients: int | None = Field(
        None, ge=1, le=MOST, description="how many of them are measured, the first by number"
    )


class Grid(BaseModel):
    """A grid as it is written; `grid_cells` are its runs."""

    model_config = _STRICT

    title: str = Field(min_length=1, max_length=300)
    preset: Literal["cifar10", "cifar100", "tiny-imagenet"] | None = None
    target_accuracy: float | None = Field(None, gt=0, lt=1)
    target_note: str = Field("", description="why this target; printed below the table")
    common: dict[str, Any] = {}
    hyper: dict[str, dict[str, Any]] = {}  # by algorithm
    axes: Axes
    sensitivity: Sensitivity = Sensitivity()
    measure: Measure = Measure()

    @field_validator("title", "target_note")
    @classmethod
    def _text_is_printable(cls, text: str) -> str:
        if not text.replace("\n", " ").isprintable():
            raise ValueError("it holds control characters")
        return " ".join(text.split())

    @cached_property
    def usual_zeta(self) -> float:
        """MAN's coefficient wherever [sensitivity] sets no other; a preset has one for all of its data set's cells."""
        axes = self.axes
        return _cell(self, axes.algorithms[0], axes.man[0], axes.partitions[0], axes.seeds[0]).config.zeta


def grid_cells(grid: Grid) -> tuple[Cell, ...]:
    """Every run of the grid once, seed by seed, so that a grid cut short has whole tables of fewer seeds.

    Raises `UsageError` naming the field that does not fit.
    """
    axes, zetas = grid.axes, grid.sensitivity.zetas
    count = len(axes.seeds) * (len(axes.partitions) * len(axes.algorithms) * len(axes.man) + len(zetas))
    if count > MOST_CELLS:
        raise UsageError(f"The grid {grid.title!r} has {count:,} cells, of {MOST_CELLS:,} at most: shorten its axes.")
    _require_left_to_axes(grid)
    _require_named_algorithms(grid)
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
            if cells.setdefault(cell.name, cell).config != cell.config:
                raise UsageError(
                    f"The grid {grid.title!r} has two different runs of one name, {cell.name}: rename one."
                )
    _require_different(grid, cells.values())
    return tuple(cells.values())


def _require_different(grid: Grid, cells: Iterable[Cell]) -> None:
    """Raise `UsageError` where two names stand for one run: FedSAM and fedsam, or dirichlet-0.3 and dirichlet-0.30."""
    names: dict[str, str] = {}
    for cell in cells:
        other = names.setdefault(json.dumps(cell.config.plain(), sort_keys=True), cell.name)
        if other != cell.name:
            raise UsageError(
                f"The grid {grid.title!r} has one run twice, as {other} and as {cell.name}: leave one of them out of "
                "[axes]."
            )


def _require_left_to_axes(grid: Grid) -> None:
    """Raise `UsageError` where [common], or --set, names a field that the axes would overrule."""
    of_splits = [name for partition in grid.axes.partitions for name in partition_fields(partition)]
    axes = {"algorithm": "algorithms", "man": "man", "seed": "seeds", **dict.fromkeys(of_splits, "partitions")}
    for name in grid.common:
        if name in axes:
            raise UsageError(
                f"The grid {grid.title!r} sets {name} for every cell, and its axes say it: set it in [axes], by "
                f"{axes[name]}."
            )


def _require_named_algorithms(grid: Grid) -> None:
    """Raise `UsageError` where [hyper] has hyperparameters of an algorithm that is not among the axes'."""
    for algorithm in grid.hyper:
        if algorithm not in grid.axes.algorithms:
            raise UsageError(
                f"The grid {grid.title!r} has hyperparameters of {shown(algorithm)}, which is none of its algorithms: "
                f"{', '.join(grid.axes.algorithms)}."
            )


def _cell(grid: Grid, algorithm: str, man: bool, partition: str, seed: int, zeta: float | None = None) -> Cell:
    source = f"the grid {grid.title!r}"
    preset = _preset(grid, algorithm, man, partition)
    beside = any(grid.axes.man) and not man  # of cells with MAN, which alone have its parts
    fields = {
        **preset,
        **{name: value for name, value in grid.common.items() if not (beside and name in PARTS_OF_MAN)},
        **partition_fields(partition),
        "algorithm": algorithm,
        "man": man,
        "seed": seed,
    }
    common = grid.common.get("hyper", {})
    if isinstance(common, dict):  # validation says if it is anything else
        fields["hyper"] = {**preset.get("hyper", {}), **common, **grid.hyper.get(algorithm, {})}
    usual = make_config(fields, source)
    config = usual if zeta is None else make_config({**fields, "zeta": zeta}, source)
    sensitivity = config.zeta != usual.zeta
    words = [short_name(algorithm)]
    words += ["man"] if man else []
    words += [f"zeta{in_words(config.zeta)}"] if sensitivity else []
    words += [partition] if len(grid.axes.partitions) > 1 else []
    first = algorithm == grid.axes.algorithms[0] and seed == grid.axes.seeds[0] and not sensitivity
    kinds: list[Kind] = ["eigs", "trace"]
    kinds += [] if sensitivity else ["density"]
    kinds += ["split"] if first and not man else []
    kinds += ["surface", "training"] if first and partition == grid.axes.partitions[0] else []
    kinds += ["flatness"] if grid.measure.flatness and not sensitivity else []
    kinds += ["local"] if grid.measure.keep_clients and not sensitivity else []
    if max(grid.measure.keep_clients, default=0) > config.rounds:
        raise UsageError(
            f"{source} keeps clients of round {max(grid.measure.keep_clients)}, of {config.rounds} rounds."
        )
    if config.train_samples is not None and grid.measure.samples > config.train_samples:
        raise UsageError(
            f"{source} measures {grid.measure.samples} training samples ([measure] samples), and its runs have "
            f"{config.train_samples} (train_samples): ask for {config.train_samples} at most."
        )
    return Cell("-".join([*words, f"s{seed}"]), config, tuple(kinds), grid.measure)


def _preset(grid: Grid, algorithm: str, man: bool, partition: str) -> dict[str, Any]:
    if grid.preset is None:
        return {}
    return preset_fields(f"{grid.preset}-{partition.replace('dirichlet-', 'dir')}", algorithm, man)


def read_grid_text(name: str) -> str:
    """Return the TOML of a shipped grid, or of the file `name`; raises `UsageError` if there is neither, or no text."""
    if name in shipped_grids():
        return shipped_grid_text(name)
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"The grid {name} is not valid TOML: {error}.") from error
    except OSError as error:
        known = ", ".join(shipped_grids())
        raise UsageError(f"There is no grid {name!r}: name one of {known}, or a TOML file.") from error


def parse_grid(text: str, source: str) -> Grid:
    """Validate a grid's TOML, its cells included; raises `UsageError` naming `source` and the field."""
    try:
        grid = Grid.model_validate(parse_toml(text, f"The grid {source}"))
    except ValidationError as error:
        field, reason = field_and_reason(error)
        raise UsageError(f"In the grid {source}, {field} does not fit: {reason}.") from error
    try:
        grid_cells(grid)
    except UsageError as error:
        raise UsageError(f"{str(error).removesuffix('.')} (in the grid {source}).") from error
    return grid


def require_named_code(
    grid: Grid, model: str | None, dataset: str | None, algorithms: Sequence[str], source: str
) -> None:
    """Raise `UsageError` where the grid names a user's code that the command line does not, or the other way round."""
    configs = [cell.config for cell in grid_cells(grid)]
    for name in {config.dataset for config in configs}:
        require_let_run(name, "data set")
    for name in grid.axes.algorithms:
        require_let_run(name, "algorithm")
    for name in {config.model for config in configs}:
        require_named(name, model, f"The grid {source}")
    allowed = [("model", model), ("dataset", dataset), *(("algorithm", name) for name in algorithms)]
    for field, allowed_name in allowed:
        if allowed_name is not None and all(getattr(config, field) != allowed_name for config in configs):
            raise UsageError(
                f"--{field} {allowed_name} has no effect: it lets code run that the grid {source} names, and this one "
                "does not name it (--only chooses among its cells)."
            )
