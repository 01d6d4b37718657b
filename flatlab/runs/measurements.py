"""What was measured of a checkpoint: `<checkpoint>.<kind>.json` beside it, each with how it was made, and of which run.

Numbers made in another way, of 60 samples instead of 500, never take the place of those that are there: they go to a
name of their own, `final.eigs-60.json`. Tables and figures read the plain name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flatlab.errors import UsageError
from flatlab.federated.config import make_config
from flatlab.files import json_text, write_text, writing
from flatlab.runs.fingerprint import Fingerprint, fingerprint
from flatlab.runs.saved import read_measurement

Content = Mapping[str, Any]
"""A measurement as plain data: "settings" say how it was made, "run" and "fingerprint" of what."""

UNSAID: Content = {
    "clients": None,
    "group_by": None,
    "which": "largest",
    "matrix": "hessian",
    "layers": False,  # of a density; eigs has always said its own
    "estimator": "hutchinson",
    "worst_case": None,
}
"""What settings are where a file's do not name them: left out because nobody asked, or from before there was a choice.

A setting that is not here and that one file names and another does not is a difference.
"""


@dataclass(frozen=True)
class Saved:
    """Where a measurement went."""

    path: Path
    note: str = ""  # a sentence for the user where that is not the plain name, or another had to move


def measurement_path(checkpoint: Path, kind: str) -> Path:
    """The plain name of a measurement of `checkpoint`."""
    return checkpoint.with_suffix(f".{kind}.json")


def kept_measurement(path: Path) -> dict[str, Any] | None:
    """Read a measurement; None where there is none. Raises `UsageError` for a file that is none."""
    return read_measurement(path) if path.exists() else None


def is_current(path: Path, settings: Content, of: Fingerprint) -> bool:
    """Whether the measurement at `path` was made as `settings` say, of the run `of`.

    What a file from before settings were kept does not tell is taken to be as asked for.
    """
    content = kept_measurement(path)
    return content is not None and is_of(content, of) and not _differing(content, {"settings": settings})


def save_measurement(checkpoint: Path, kind: str, content: Content, *, for_tables: bool = False) -> Saved:
    """Write `content` beside `checkpoint`: over one made in the same way of the same run, or under a name of its own.

    With `for_tables` it takes the plain name in any case, and one made in another way moves from there to its own.
    """
    plain = measurement_path(checkpoint, kind)
    there = kept_measurement(plain)
    if there is None or _same(there, content):
        return _write(plain, content)
    if for_tables or not is_of(there, _fingerprint(content)):  # made of a run that is no longer here: no rival
        moved = _own_name(checkpoint, kind, there)
        with writing(moved):
            plain.replace(moved)
        how = _difference(there, content)
        return _write(plain, content, f"{plain.name} was made {how}: it is kept as {moved.name}.")
    own = _own_name(checkpoint, kind, content)
    how = _difference(there, content)
    return _write(own, content, f"{plain} was made {how}, and stays; these numbers are in {own.name}.")


def _write(path: Path, content: Content, note: str = "") -> Saved:
    write_text(path, json_text(content))
    return Saved(path, note)


def _own_name(checkpoint: Path, kind: str, content: Content) -> Path:
    """The first name that is free, or that holds a measurement made in the same way of the same run.

    What cannot be read there stays as it is.
    """
    for path in _names(checkpoint, kind, settings_of(content).get("samples")):
        try:
            there = kept_measurement(path)
        except UsageError:
            continue
        if there is None or _same(there, content):
            return path
    raise AssertionError  # there is no end of names


def _names(checkpoint: Path, kind: str, samples: int | None) -> Iterator[Path]:
    base = f"{kind}-{samples}" if samples else f"{kind}-other"
    yield measurement_path(checkpoint, base)
    number = 2
    while True:
        yield measurement_path(checkpoint, f"{base}-{number}")
        number += 1


def _same(one: Content, other: Content) -> bool:
    return is_of(one, _fingerprint(other)) and not _differing(one, other)


def _differing(one: Content, other: Content) -> list[str]:
    """The settings in which two measurements differ, in the order of the first; as far as an older file tells them."""
    first, second = settings_of(one), settings_of(other)
    told = "settings" in one and "settings" in other
    names = [name for name in {**first, **second} if told or (name in first and name in second)]
    return [name for name in names if first.get(name) != second.get(name)]


def settings_of(content: Content) -> Content:
    """How it was made, with what its settings leave `UNSAID`; of a file from before they were kept, what it shows."""
    if "settings" in content:
        return {**UNSAID, **content["settings"]}
    seen = {name: content[name] for name in ("samples", "method", "backend", "batch_size") if name in content}
    if "samples" in content.get("data", {}):
        seen["samples"] = content["data"]["samples"]
    if "nodes" in content:
        seen["probes"] = len(content["nodes"])
    if "losses" in content:
        seen["points"] = len(content["losses"])
    return seen


def is_of(content: Content, of: Fingerprint | None) -> bool:
    """Whether it was made of the run `of`, as far as both are known."""
    own = _fingerprint(content)
    return own is None or of is None or own.agrees(of)


def _fingerprint(content: Content) -> Fingerprint | None:
    """Of the run that was measured; None where the file does not say, or says what this version cannot read."""
    fields = (content.get("run") or content).get("config")
    if fields is None:
        return None
    try:
        kept = content.get("fingerprint", {})
        of = fingerprint(make_config(fields, "a measurement"), kept.get("data", ""))
        return replace(of, weights=kept.get("weights", ""))
    except UsageError:
        return None


def _difference(there: Content, content: Content) -> str:
    """In words, how the one that is there was made differently."""
    if not is_of(there, _fingerprint(content)):
        return "of another run"
    one, other = settings_of(there), settings_of(content)
    fields = [f"{name} {_word(one, name)}, not {_word(other, name)}" for name in _differing(there, content)]
    return f"with other settings ({'; '.join(fields)})"


def _word(settings: Content, name: str) -> str:
    value = settings.get(name)
    return "unset" if value is None else str(value)
