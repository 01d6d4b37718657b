"""What was asked for, from a preset, a file, options and a run that is there already, as one configuration."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from flatlab.data import absolute_name
from flatlab.errors import UsageError
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.config import RunConfig, make_config
from flatlab.federated.config_file import parse_toml, read_config
from flatlab.federated.own_algorithm import hyper_of
from flatlab.federated.presets import preset_fields
from flatlab.federated.spelling import in_small_letters
from flatlab.functions import let_run, require_let_run, require_named
from flatlab.runs.folder import RunFolder, default_folder

HYPERPARAMETERS = frozenset(name for algorithm in ALGORITHMS.values() for name in algorithm.hyper.model_fields)
"""Of any algorithm."""


def read_fields(
    path: Path | None,
    preset: str | None,
    options: dict[str, Any],
    settings: list[str],
    *,
    resume: bool,
    out: Path | None,
) -> RunConfig:
    """Merge, each over the one before: `preset`, the TOML file at `path`, `options` (None: not given), `settings`.

    A resumed run takes what is not given from its own folder; where no run is there yet, `resume` makes no difference.
    Where a file names code of the user's as model, data set or algorithm, the options must name it too. Raises
    `UsageError`.
    """
    given = {name: value for name, value in options.items() if value is not None}
    let_run(given.get("dataset"), given.get("algorithm"))
    own = hyper_of(given.get("algorithm"))
    given |= read_settings(settings, HYPERPARAMETERS | set(own.model_fields if own else ()))
    merged = in_small_letters(merged_fields(read_config(path) if path else {}, given))
    if preset:
        merged = merged_fields(
            preset_fields(preset, merged.get("algorithm", "fedavg"), bool(merged.get("man"))), merged
        )
    source = f"{path} and the options" if path else "the options"
    folder = out or default_folder(make_config(merged, source))
    saved = RunFolder(folder).config() if resume else None
    if saved:
        below = saved.plain()
        if merged.get("algorithm", saved.algorithm) != saved.algorithm:
            del below["hyper"]  # another algorithm's
        merged = merged_fields(below, merged)
    config = make_config(merged, source)
    require_let_run(config.algorithm, "algorithm")
    if given.get("zeta") is not None and not config.man:
        raise UsageError("--zeta is the coefficient of MAN, which is off; add --man.")
    if given.get("swa_every") is not None and config.swa_start is None:
        raise UsageError("swa_every is part of an average that nothing asks for; set swa_start, as to 0.75.")
    if given.get("delta") is not None and config.partition == "iid":
        raise UsageError(
            "--delta is the concentration of a Dirichlet split, and this one is IID: leave one of them out."
        )
    require_named(config.model, given.get("model"), f"The run in {folder}" if saved else f"The configuration {path}")
    file = None if config.partition_file is None else str(Path(config.partition_file).resolve())
    return config.model_copy(update={"dataset": absolute_name(config.dataset), "partition_file": file})


def merged_fields(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay fields over others; hyperparameters one by one. What is no table stays, for validation to name it."""
    hypers = [fields["hyper"] for fields in (below, above) if "hyper" in fields]
    if len(hypers) == 2 and all(isinstance(hyper, dict) for hyper in hypers):
        return {**below, **above, "hyper": {**hypers[0], **hypers[1]}}
    return {**below, **above}


def read_settings(settings: Sequence[str], hyperparameters: Collection[str] = HYPERPARAMETERS) -> dict[str, Any]:
    """Turn FIELD=VALUE words into fields; a value is TOML (50, 0.1, true, [64, 32]) or else a plain word.

    One of the `hyperparameters` may be named alone (rho) or as such (hyper.rho). Raises `UsageError`.
    """
    fields: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {setting} is not FIELD=VALUE, as in --set batch_size=50.")
        try:
            value = parse_toml(f"value = {text}", setting)["value"]
        except UsageError:
            value = text
        of_method = name.startswith("hyper.") or (name not in RunConfig.model_fields and name in hyperparameters)
        above = {"hyper": {name.removeprefix("hyper."): value}} if of_method else {name: value}
        fields = merged_fields(fields, above)
    return fields
