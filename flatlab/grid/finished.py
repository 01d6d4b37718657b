"""Whether the run of a cell is finished, in a folder that may have been brought here without its weights."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from flatlab.errors import UsageError, shown
from flatlab.federated.config import RunConfig, make_config
from flatlab.federated.config_file import read_config
from flatlab.runs.checkpoint import Head
from flatlab.runs.contents import require_numbers
from flatlab.runs.fingerprint import differences, settled
from flatlab.runs.folder import RunFolder
from flatlab.runs.forms import FORMS
from flatlab.runs.measurements import measurement_path
from flatlab.runs.metrics import Record
from flatlab.runs.saved import read_measurement


def finished(config: RunConfig, folder: Path) -> Head | None:
    """What is known of the run `config`, but for its weights, where it is finished; None where it is not.

    Its last checkpoint says so, or, where that is not here, its rounds and what was measured of it. What metrics.jsonl
    says of it is another question (`require_last_evaluation`).
    """
    files = RunFolder(folder)
    if files.final.exists():
        return files.finished(config)
    if files.former.exists():  # trained anew: what was measured here is of the training before
        return None
    records = [] if files.refusal(config) else files.metrics.read()
    if not records or records[-1]["round"] < config.rounds:  # measured once, perhaps, and since begun anew
        return None
    head = _head_of_measurements(files.final)
    if head is None or differences(settled(head.config), settled(config)) or head.round < config.rounds:
        return None
    return head


def require_last_evaluation(final: Head, records: Sequence[Record], folder: Path) -> None:
    """Raise `UsageError` unless the newest evaluation of `records`, metrics.jsonl in `folder`, is that of `final`.

    It is of the last round, and the one that the checkpoint keeps, where that is here: a file that was cut off, or is
    another run's, holds accuracies too. `records` are read after `final`, since they are complete before it is there.
    """
    path, last = folder / "metrics.jsonl", final.config.rounds
    advice = "bring back the file that this run wrote, or move the folder away and train the run again."
    newest = next((record for record in reversed(records) if "test_accuracy" in record), None)
    if newest is None or newest["round"] != last:
        found = "has no evaluation" if newest is None else f"has its newest evaluation in round {newest['round']}"
        raise UsageError(f"{path} {found}, and the run beside it is finished, after round {last}: {advice}")
    for name in ("test_accuracy", "test_loss"):
        ours = newest.get(name)
        kept = final.metrics.get(name, ours)
        if json.dumps(ours) != json.dumps(kept):  # as text, since a loss may be no number
            raise UsageError(
                f"{path} has {name} = {shown(ours)} in round {last}, and final.pt beside it {shown(kept)}, so that one "
                f"of them is of another run: {advice}"
            )


def config_of(folder: Path) -> RunConfig | None:
    """What the run in `folder` was asked to be: by config.toml, its last checkpoint, or what was measured of it."""
    path = folder / "config.toml"
    if path.exists():
        return make_config(read_config(path), str(path))
    files = RunFolder(folder)
    head = None if files.final.exists() else _head_of_measurements(files.final)
    return head.config if head else files.config()


def _head_of_measurements(checkpoint: Path) -> Head | None:
    for kind in FORMS:
        path = measurement_path(checkpoint, kind)
        content = read_measurement(path, kind) if path.exists() else {}
        run, data = content.get("run"), content.get("fingerprint", {}).get("data", "")
        if run and "config" in run and "round" in run:
            try:
                config = make_config(run["config"], str(path))
            except UsageError:  # of a version whose runs had other fields
                return None
            own_code = require_numbers(_with_nan(run.get("own_code", {})), path, "run.own_code")
            # without its metrics: where the run was trained again elsewhere, its rounding is another
            weights = content.get("fingerprint", {}).get("weights", "")
            return Head(
                config,
                run["round"],
                {},
                {},
                {},
                content.get("versions", {}),
                data,
                own_code=own_code,
                weights=weights,
            )
    return None


def _with_nan(kept: object) -> object:
    """Lists of numbers by name, for whose NaN JSON has null; anything else as it is."""
    if not isinstance(kept, dict):
        return kept
    return {
        name: [math.nan if x is None else x for x in numbers] if isinstance(numbers, list) else numbers
        for name, numbers in kept.items()
    }
