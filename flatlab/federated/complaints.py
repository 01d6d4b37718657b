"""What pydantic finds wrong with a configuration, as one sentence."""

from collections.abc import Iterable

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails

from flatlab.errors import shown


def field_and_reason(error: ValidationError) -> tuple[str, str]:
    """The first field that does not fit, as in "axes.seeds.0" ("" for the whole), and why, beginning in lower case."""
    first = _first(error)
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        reason = "there is no such field"
    return ".".join(shown(part).strip("'") for part in first["loc"]), reason[:1].lower() + reason[1:]


def _first(error: ValidationError) -> ErrorDetails:
    """The mistake to name: a field that there is not, which may be why another is missing, before all others."""
    found = error.errors(include_url=False)
    return next((each for each in found if each["type"] == "extra_forbidden"), found[0])


def below(field: str, error: ValidationError) -> ValidationError:
    """The same errors, of what stands in `field`."""
    details: list[InitErrorDetails] = [
        {"type": each["type"], "loc": (field, *each["loc"]), "input": each["input"], "ctx": each.get("ctx", {})}
        for each in error.errors(include_url=False)
    ]
    return ValidationError.from_exception_data(error.title, details)


def one_sentence(error: ValidationError, source: str, known: Iterable[str]) -> str:
    """The first mistake in `source`, whose fields are `known`, with its field, its value and what was expected."""
    first = _first(error)
    field, reason = field_and_reason(error)
    if first["type"] == "extra_forbidden":
        return f"Unknown field {field!r} in {source}; the fields are: {', '.join(known)}."
    if not field:
        return f"In {source}: {reason}."
    return f"In {source}, {field} = {shown(first['input'])} does not fit: {reason}."
