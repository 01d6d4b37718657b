"""What a run that nobody watches says now and then, and what its run.log keeps."""

import time
from collections.abc import Callable

from flatlab.runs.metrics import Record

LINE_SECONDS = 60.0
"""A line comes at least this often, if a round ends."""

LINE_SHARE = 0.05
"""A line comes whenever this share of the rounds is done."""


class Lines:
    """Observes the rounds after `completed` of `total`, and tells a line every minute or every 5 %, and at the end."""

    def __init__(self, completed: int, total: int, tell: Callable[[str], None]) -> None:
        self.first, self.total, self.tell = completed, total, tell
        self.began = self.told_at = time.monotonic()
        self.told = completed
        self.accuracy: float | None = None

    def __call__(self, record: Record) -> None:
        """Take the record of a round."""
        self.accuracy = record.get("test_accuracy", self.accuracy)
        done, now = record["round"], time.monotonic()
        due = done - self.told >= LINE_SHARE * self.total or now - self.told_at >= LINE_SECONDS
        if due or done == self.total:
            self.told, self.told_at = done, now
            seconds = (now - self.began) / (done - self.first) * (self.total - done)
            self.tell(progress_line(record, self.total, self.accuracy, seconds))


def progress_line(record: Record, total: int, accuracy: float | None, seconds: float) -> str:
    """Round, train loss, the newest accuracy, and the time that is left."""
    words = [f"round {record['round']}/{total}", f"train loss {record['train_loss']:.4f}"]
    words += [] if accuracy is None else [f"test accuracy {accuracy:.2%}"]
    words += [f"about {duration(seconds)} left"] if record["round"] < total else []
    return ", ".join(words)


def duration(seconds: float) -> str:
    """Return seconds as s, min, h or days, whichever reads best."""
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (129600, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.2g} {unit}" if seconds / size < 10 else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
