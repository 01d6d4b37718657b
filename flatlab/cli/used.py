"""Options of `flatlab train` that a call would not use, since others have it leave before the training."""

import typer

from flatlab.errors import UsageError

LEAVE = ("show_split", "draw_split", "save_split", "save_shares", "dry_run")
"""Options that have the call leave before the training."""

SPLITS = frozenset(("show_split", "draw_split", "save_split"))
"""Those that present the split, in one call if need be; every other is carried out alone."""

TRAINING = (
    "workers",
    "engine",
    "device",
    "superlink",
    "patience",
    "track_eigs",
    "keep_clients",
    "track",
    "tensorboard",
    "state",
    "save_every",
    "json",
)
"""Options that say how a run is trained and where its numbers go, beside the fields that say which run it is."""

READ = {"save_shares": {"workers"}, "dry_run": set(TRAINING) - {"json"}}
"""Options of `TRAINING` that such a call reads: a dry run checks how the run would be carried out."""


def require_used(context: typer.Context) -> None:
    """Raise `UsageError` where the command line names an option that the call would not use."""
    given = [name for name in (*LEAVE, *TRAINING) if is_given(context, name)]
    first = next((name for name in given if name in LEAVE), None)
    if first is None:
        return
    used = {first, *READ.get(first, ())} | (SPLITS if first in SPLITS else set())
    for name in given:
        if name not in used:
            raise UsageError(f"{option(name)} has no effect beside {option(first)}: leave one of them out.")


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the command line names the option of this parameter."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def option(name: str) -> str:
    """A parameter's option, as it is written."""
    return f"--{name.replace('_', '-')}"
