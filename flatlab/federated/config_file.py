"""A run's configuration as a TOML file."""

import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig
from flatlab.files import write_text


def read_config(path: Path) -> dict[str, Any]:
    """Return the fields in a TOML file, not yet validated; raises `UsageError` if it is missing or is not TOML."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"Cannot read the configuration {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The configuration {path} is not valid TOML: {error}.") from error
    return parse_toml(text, f"The configuration {path}")


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """Return the tables of a TOML text; raises `UsageError` that begins with `what` where it is not TOML."""
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and whole numbers of thousands of digits
        raise UsageError(f"{what} is not valid TOML: {error}.") from error
    except RecursionError as error:
        raise UsageError(f"{what} is not valid TOML: it is nested too deeply.") from error


def write_config(path: Path, config: RunConfig) -> None:
    """Write `config` as TOML, atomically."""
    write_text(path, tomli_w.dumps(config.plain()))
