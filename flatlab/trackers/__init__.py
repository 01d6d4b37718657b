"""Trackers of experiments: where a run's numbers go beside its own folder. To add one, write and register its file.

The file has a class `Tracker` (`flatlab.trackers.base`), and imports its package as it is imported itself, which is
when the tracker is asked for.
"""

TRACKERS = {
    "tensorboard": "flatlab.trackers.tensorboard",
    "wandb": "flatlab.trackers.wandb",
    "mlflow": "flatlab.trackers.mlflow",
    "trackio": "flatlab.trackers.trackio",
}
"""Modules by the names on the command line, which are those of flatlab's extras too."""
