"""Trackers of experiments: where a run's numbers go beside its own folder. To add one, write and register its file.

The file has a class `Tracker` (`flatlab.tracking.base`), and imports its package as it is imported itself, which is
when the tracker is asked for.
"""

TRACKERS = {
    "tensorboard": "flatlab.tracking.tensorboard",
    "wandb": "flatlab.tracking.wandb",
    "mlflow": "flatlab.tracking.mlflow",
    "trackio": "flatlab.tracking.trackio",
}
"""Modules by the names on the command line, which are those of flatlab's extras too."""
