"""What was asked for, from a preset, a file, options and a run that is there already, as one configuration."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatlab.data import absolute_name
from flatlab.errors import UsageError, shown
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.config import RunConfig, make_config
from flatlab.federated.config_file import parse_toml, read_config
from flatlab.federated.needs import USUAL, is_whole, require_effect, word
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
    data_root: Path | None = None,
) -> RunConfig:
    """Merge, each over the one before: `preset`, the TOML file at `path`, `options` (None: not given), `settings`.

    A resumed run takes what is not given from its own folder; where no run is there yet, `resume` makes no difference.
    Where a file names code of the user's as model, data set or algorithm, the options must name it too. Raises
    `UsageError`.
    """
    given = {name: value for name, value in options.items() if value is not None}
    let_run(given.get("dataset"), given.get("algorithm"))
    own = hyper_of(given.get("algorithm"))
    given = named_once(given, read_settings(settings, HYPERPARAMETERS | set(own.model_fields if own else ())))
    written = in_small_letters(read_config(path) if path else {})
    _leave_out_other_method(written, given, path)
    merged = in_small_letters(merged_fields(written, given))
    cell = preset_fields(preset, merged.get("algorithm", "fedavg"), bool(merged.get("man"))) if preset else {}
    merged = merged_fields(cell, merged)
    source = f"{path} and the options" if path else "the options"
    folder = out or default_folder(make_config(merged, source))
    saved = RunFolder(folder).config() if resume else None
    below = saved.plain() if saved else {}
    if saved:
        if merged.get("algorithm", saved.algorithm) != saved.algorithm:
            del below["hyper"]  # another algorithm's
        merged = merged_fields(below, merged)
    config = make_config(merged, source)
    require_let_run(config.algorithm, "algorithm")
    require_named(config.model, given.get("model"), f"The run in {folder}" if saved else f"The configuration {path}")
    if not is_whole(given):  # a run's own, which names all fields whether they have an effect or not
        require_effect(given, "the options", dict(config))
    if not is_whole(written):  # an option may give a field of the file its effect, or take it away
        alone = {**USUAL, **below, **cell, **written}
        with_man = {**alone, "man": True} if "man" in given else alone  # one file for runs with --man and --no-man
        require_effect(written, f"the configuration {path}", dict(config), alone, with_man)
    file = None if config.partition_file is None else str(Path(config.partition_file).resolve())
    return config.model_copy(update={"dataset": absolute_name(config.dataset, data_root), "partition_file": file})


def _leave_out_other_method(written: dict[str, Any], given: Mapping[str, Any], path: Path | None) -> None:
    """Take the hyperparameters from a file's fields where they are another algorithm's than the options name.

    Raises `UsageError` where somebody wrote them by hand: a run's own file names all, whether asked for or not.
    """
    of, asked = written.get("algorithm"), in_small_letters(dict(given)).get("algorithm")
    if "hyper" not in written or None in (of, asked) or of == asked:
        return
    if not is_whole(written):
        raise UsageError(
            f"The hyperparameters in {path} are of {of}, and the options name {asked}: take them out of "
            "the file, or the algorithm out of one of the two."
        )
    del written["hyper"]


def merged_fields(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay fields over others; hyperparameters one by one. What is no table stays, for validation to name it."""
    hypers = [fields["hyper"] for fields in (below, above) if "hyper" in fields]
    if len(hypers) == 2 and all(isinstance(hyper, dict) for hyper in hypers):
        return {**below, **above, "hyper": {**hypers[0], **hypers[1]}}
    return {**below, **above}


def read_settings(settings: Sequence[str], hyperparameters: Collection[str] = HYPERPARAMETERS) -> dict[str, Any]:
    """Turn FIELD=VALUE words into fields; a value is TOML (50, 0.1, true, [64, 32]) or else a plain word.

    One of the `hyperparameters` may be named alone (rho) or as such (hyper.rho). Raises `UsageError`, also where a
    field is named with two values.
    """
    fields: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {setting} is not FIELD=VALUE, as in --set batch_size=50.")
        try:
            read = parse_toml(f"value = {text}", setting)
        except UsageError:
            read = {"value": text}
        if len(read) > 1:  # further lines that are TOML too
            raise UsageError(f"--set {shown(setting)} holds more than one field: write --set before each of them.")
        if name in RunConfig.model_fields and name in hyperparameters:
            raise UsageError(
                f"{name} is a hyperparameter of the algorithm and a field of every run: --set hyper.{name}={text} is "
                "the first, and the second goes into a file for --config."
            )
        of_method = name.startswith("hyper.") or name in hyperparameters
        above = {"hyper": {name.removeprefix("hyper."): read["value"]}} if of_method else {name: read["value"]}
        fields = named_once(fields, above)
    return fields


def named_once(fields: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Both together, names in small letters; raises `UsageError` where a field has another value in each of them."""
    fields, more = in_small_letters(fields), in_small_letters(more)
    for name in fields.keys() & more.keys():
        one, other = fields[name], more[name]
        if name == "hyper" and isinstance(one, dict) and isinstance(other, dict):
            named_once(one, other)
        elif one != other:
            raise UsageError(f"{name} is given twice, as {word(one)} and as {word(other)}: leave one of them out.")
    return merged_fields(fields, more)
