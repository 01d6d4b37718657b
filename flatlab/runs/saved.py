"""Reading what runs and measurements leave on the disk.

Files come from earlier versions and from other people: each is checked against its form (`forms`, `record_forms`) here,
once, so that what uses it can trust it.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flatlab.errors import UsageError
from flatlab.runs.forms import FORMS, Other, Saved, Study
from flatlab.runs.record_forms import Evaluated, Record, RecordPart


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a metrics.jsonl, rounds ascending; none without a file. Raises `UsageError`."""
    if not path.exists():
        return []
    lines = _text(path).splitlines(keepends=True)
    records: list[dict[str, Any]] = []
    for number, line in enumerate((line for line in lines if line.endswith("\n")), start=1):
        where = f"{path}, line {number}"
        records.append(check_record(_parsed(line, where), where))
        if number > 1 and records[-1]["round"] <= records[-2]["round"]:
            raise UsageError(f"In {where}, round = {records[-1]['round']} does not follow the line before.")
    return records


def check_record(content: object, where: str, *, part: bool = False, evaluated: bool = False) -> dict[str, Any]:
    """Return a record of metrics; in `part` it may lack its round. Raises `UsageError` that begins with `where`."""
    return _checked(RecordPart if part else Evaluated if evaluated else Record, content, where)


def read_measurement(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Return what a command wrote beside a checkpoint; raises `UsageError`.

    Of one of the kinds in `FORMS` all that is read of it is checked; of any other, how it was made and of what.
    """
    return _checked(Other if kind is None else FORMS[kind], read_json(path), str(path))


def read_study(path: Path) -> dict[str, Any]:
    """Return what `flatlab verify --study` found; raises `UsageError`."""
    return _checked(Study, read_json(path), str(path))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; raises `UsageError` where it is none."""
    return _parsed(_text(path), str(path))


def _checked(form: type[Saved], content: object, where: str) -> dict[str, Any]:
    try:
        form.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part)[:80] for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        what = f"{field} does not fit: " if field else ""
        raise UsageError(f"In {where}, {what}{reason[:1].lower()}{reason[1:]}.") from error
    assert isinstance(content, dict)
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not valid JSON ({error}); delete it and measure again.") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # JSONDecodeError, and whole numbers of thousands of digits
        raise UsageError(f"{where} is not valid JSON ({error}); delete it and measure again.") from error
    except RecursionError as error:
        raise UsageError(f"{where} is not valid JSON (nested too deeply); delete it and measure again.") from error
