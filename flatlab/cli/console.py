"""What every command shares when it speaks: one console, and the file that `--json` asks for."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from flatlab.files import write_text

console = Console()
"""Tables and results, on standard output."""

status = Console(stderr=True)
"""Progress, on standard error, so that results can be piped."""


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write `content` to `path`, atomically, if there is one."""
    if path is not None:
        write_text(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same plain data with null for what is no finite number, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
