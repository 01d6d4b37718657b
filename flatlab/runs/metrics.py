"""metrics.jsonl: one line per completed round."""

import json
import os
from pathlib import Path
from typing import Any

from flatlab.errors import UsageError
from flatlab.files import appending, write_text
from flatlab.runs.saved import check_record as check_form
from flatlab.runs.saved import read_records

Record = dict[str, Any]
"""One line of metrics.jsonl."""


def check_record(content: object, where: str) -> None:
    """Raise `UsageError`, which begins with `where`, unless `content` is a record with an evaluation."""
    check_form(content, where, evaluated=True)


class Metrics:
    """The file at `path`; lines are appended as rounds end, and are on the disk for certain once `sync` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Record]:
        """Return the records of all whole lines; none where there is no file. Raises `UsageError`."""
        return read_records(self.path)

    def clear(self) -> None:
        """Make an empty file."""
        write_text(self.path, "")

    def append(self, record: Record) -> None:
        """Add one line; raises `WriteError`."""
        with appending(self.path) as file:
            file.write(f"{json.dumps(record)}\n".encode())

    def sync(self) -> int:
        """Bring every line to the disk; returns the length of the file in bytes."""
        with appending(self.path) as file:
            os.fsync(file.fileno())
            return file.tell()

    def cut(self, completed: int, length: int | None) -> None:
        """Drop the lines of rounds after `completed`, which ends at byte `length` (None: as in older files, unknown).

        Raises `UsageError` where lines up to there are missing.
        """
        if length is None:
            kept = [record for record in self.read() if record["round"] <= completed]
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
            return
        content = self.path.read_bytes() if self.path.exists() else b""
        if len(content) < length:
            raise UsageError(
                f"{self.path} lacks lines of the {completed} rounds that resume.pt beside it counts: restore the file, "
                "or start again in another folder."
            )
        whole = content[:length]
        try:
            text = whole.decode()
        except UnicodeDecodeError:
            text = "damaged"
        if text and not text.endswith("\n"):
            raise UsageError(
                f"{self.path} and resume.pt beside it do not agree on where round {completed} ends: restore the file, "
                "or start again in another folder."
            )
        if len(content) > length:
            write_text(self.path, text)
