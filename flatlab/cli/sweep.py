"""The loop that the four commands share: open each subject, measure it under a progress line, save the numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from flatlab.cli.console import fail_if, noted, warn_of_unwritable, write_json
from flatlab.cli.pictures import picture_path
from flatlab.errors import NOT_CONVERGED
from flatlab.measuring.expense import product_seconds
from flatlab.measuring.ranks import joined, rank
from flatlab.measuring.result import Result, measured
from flatlab.measuring.subjects import Measurement, Subject, check, open_subject
from flatlab.runs.lines import duration
from flatlab.runs.measurements import kept_measurement, measurement_path, save_measurement
from flatlab.tell import Tell
from flatlab.terminal.console import console, say, status
from flatlab.terminal.progress import progress_line

LONG_SECONDS = 20.0
"""What takes longer is announced."""

Work = Callable[[Subject, Tell], Result]
"""Measures a subject."""

Show = Callable[[list[dict[str, Any]]], None]
"""Prints the numbers of every subject, and draws them where that was asked for."""


def measure(
    kind: str,
    paths: Sequence[Path],
    measurement: Measurement,
    settings: Mapping[str, Any],
    work: Work,
    show: Show,
    json: Path | None = None,
    figure: Path | None = None,
    *,
    products: float = 0,
    kept: Path | None = None,
    keep: Callable[[Result], None] | None = None,
) -> list[dict[str, Any]]:
    """Do `work` on every checkpoint, or on the user's own model where there is none.

    `settings` say how, beside what `measurement` does. Writes `<checkpoint>.<kind>.json` beside each as soon as it is
    measured (`flatlab.runs.measurements`), everything to `json`, and the picture that `show` draws to `figure`;
    returns the contents. `keep` writes more of each result, to `kept`. What takes long is announced, by about how many
    `products` it makes. Of the processes that torchrun starts, the first alone writes and returns. A place that cannot
    be written is named before the work begins and once the numbers are shown, in a `FlatlabError`. Where a number did
    not converge, it ends in `SystemExit` with `NOT_CONVERGED`.
    """
    check(measurement, paths)
    for checkpoint in paths:
        kept_measurement(measurement_path(checkpoint, kind))  # one that is broken is named before the work
    results: list[dict[str, Any]] = []
    finished = True
    unsaved: list[str] = []
    with together(measurement.device) as first:
        picture = figure and picture_path(figure)
        warn_of_unwritable([*(measurement_path(path, kind) for path in paths), *filter(None, (json, picture, kept))])
        for path in paths or (None,):
            with progress_line("own model" if path is None else str(path)) as tell:
                result = measured(partial(_opened, path, measurement, products), work, settings, tell)
            results.append(result.to_dict())
            finished &= result.finished
            if path is not None and rank() == 0:
                with noted(unsaved):
                    say(save_measurement(path, kind, results[-1]).note)
            if keep is not None and rank() == 0:
                with noted(unsaved):
                    keep(result)
    with noted(unsaved):
        write_json(json, results[0] if len(results) == 1 else {"checkpoints": results})
    with noted(unsaved):
        show(reference_first(results))
    fail_if(unsaved)
    if first and not finished:
        raise SystemExit(NOT_CONVERGED)
    return results


def reference_first(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results, those of runs without MAN first, with which others are compared; otherwise as they were named."""
    return sorted(results, key=lambda result: bool(result.get("run", {}).get("config", {}).get("man")))


def _opened(path: Path | None, measurement: Measurement, products: float) -> Subject:
    subject = open_subject(path, measurement)
    for note in subject.notes:
        say(note)
    models = 1 + len(subject.own_models)  # at each of which the whole loss is measured
    seconds = models * products * product_seconds(subject.problem)
    if seconds >= LONG_SECONDS:
        say(f"This takes about {duration(seconds)}, by the time of one gradient and the usual number of products.")
    return subject


@contextmanager
def together(device: str) -> Iterator[bool]:
    """Within the block the processes that torchrun starts share the work (`joined`), and only the first speaks."""
    with joined(device) as first:
        console.quiet = status.quiet = not first
        yield first
