"""Trackers beside a run: each on a thread of its own, so that neither its errors nor its waiting reach the run."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from flatlab.errors import UsageError, first_line, shown
from flatlab.federated.rounds import Run
from flatlab.files import write_text
from flatlab.runs.metrics import Record
from flatlab.tell import Tell, silent
from flatlab.trackers import TRACKERS
from flatlab.trackers.base import FINISH_SECONDS, Tracked, Tracker
from flatlab.trackers.numbers import of_round

NAMES = "trackers.json"
"""In the run's folder: what each tracker knows the run as, so that it goes on there when the run goes on."""

Log = Callable[[Mapping[str, float], int], None]
"""Takes numbers by tag, and the round that they are of."""


def read_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """The trackers of these names, each once; raises `UsageError` for one that is unknown or not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"--track is one of {', '.join(TRACKERS)}, not {shown(name)}.")
        try:
            import_module(TRACKERS[name])
        except ImportError as error:
            raise UsageError(f"--track {name} needs its package ({error}): pip install 'flatlab[{name}]'.") from error
    return tuple(dict.fromkeys(names))


@contextmanager
def tracked(run: Run, names: Sequence[str], tell: Tell = silent) -> Iterator[Callable[[Record], None]]:
    """Within the block the run is followed by the trackers `names`; yields what takes the record of each round.

    What is to be said of them goes to run.log and to `tell`.
    """

    def said(line: str) -> None:
        run.files.log(line)
        tell(line)

    with followed(names, run.folder, run.world.config.plain(), run.server.round, said) as log:
        yield lambda record: log(of_round(record, run.reported), record["round"])


@contextmanager
def followed(
    names: Sequence[str], folder: Path, settings: Mapping[str, Any], completed: int, tell: Tell
) -> Iterator[Log]:
    """Within the block the run in `folder` is followed by the trackers `names`; yields what takes numbers for all.

    It was configured by `settings`, and had `completed` rounds. A tracker that fails is told of in one sentence, and
    gets no more.
    """
    if not completed:  # what is there is of an earlier run
        with suppress(OSError):
            (folder / NAMES).unlink(missing_ok=True)
    known = _read_names(folder)
    with ExitStack() as stack:
        followers = []
        for name in names:
            run = Tracked(folder, settings, completed, known.get(name))
            follower = _Follower(name, run, tell)
            stack.callback(follower.finish)
            followers.append(follower)

        def log(numbers: Mapping[str, float], round_: int) -> None:
            for follower in followers:
                follower.queue.put((numbers, round_))

        yield log


class _Follower:
    """A tracker at work on its thread, which numbers are sent to."""

    def __init__(self, name: str, run: Tracked, tell: Tell) -> None:
        self.name, self.run, self.tell = name, run, tell
        self.queue: SimpleQueue[tuple[Mapping[str, float], int] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            tracker: Tracker = import_module(TRACKERS[self.name]).Tracker()
            known_as = tracker.start(self.run)
            with _NAMES_LOCK:
                names = _read_names(self.run.folder)
                write_text(self.run.folder / NAMES, json.dumps({**names, self.name: known_as}) + "\n")
            while (item := self.queue.get()) is not None:
                tracker.log(*item)
            tracker.finish()
        except (Exception, SystemExit) as error:  # of a package that is not ours
            said = first_line(error) if isinstance(error, Exception) else "it wanted to leave"
            self.tell(f"{self.name} no longer tracks this run ({said}); the run goes on, and metrics.jsonl has it all.")

    def finish(self) -> None:
        """Wait until the tracker has everything, or has had its time."""
        self.queue.put(None)
        self.thread.join(FINISH_SECONDS)
        if self.thread.is_alive():
            self.tell(f"{self.name} did not take everything within {FINISH_SECONDS:.0f} s; metrics.jsonl has it all.")


_NAMES_LOCK = threading.Lock()


def _read_names(folder: Path) -> dict[str, str]:
    """What trackers know the run as; of a file that cannot be read nothing, so that they begin anew."""
    try:
        names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in names.items() if isinstance(v, str)} if isinstance(names, dict) else {}
