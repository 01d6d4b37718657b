"""Whether the run of a cell is finished, in a folder that may have been brought here without its weights."""

from pathlib import Path

from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig, make_config
from flatlab.runs.checkpoint import Checkpoint
from flatlab.runs.fingerprint import differences, settled
from flatlab.runs.folder import RunFolder
from flatlab.runs.forms import FORMS
from flatlab.runs.measurements import measurement_path
from flatlab.runs.saved import read_measurement


def finished(config: RunConfig, folder: Path) -> Checkpoint | None:
    """What is known of the run `config`, but for its weights, where it is finished; None where it is not.

    Its last checkpoint says so, or, where that is not here, its rounds and what was measured of it.
    """
    files = RunFolder(folder)
    if files.final.exists():
        return files.finished(config)
    records = [] if files.refusal(config) else files.metrics.read()
    if not records or records[-1]["round"] < config.rounds:  # measured once, perhaps, and since begun anew
        return None
    head = _head_of_measurements(files.final)
    if head is None or differences(settled(head.config), settled(config)) or head.round < config.rounds:
        return None
    return head


def _head_of_measurements(checkpoint: Path) -> Checkpoint | None:
    for kind in FORMS:
        path = measurement_path(checkpoint, kind)
        content = read_measurement(path, kind) if path.exists() else {}
        run, data = content.get("run"), content.get("fingerprint", {}).get("data", "")
        if run and "config" in run and "round" in run:
            try:
                config = make_config(run["config"], str(path))
            except UsageError:  # of a version whose runs had other fields
                return None
            return Checkpoint(config, run["round"], {}, {}, run.get("metrics", {}), content.get("versions", {}), data)
    return None
