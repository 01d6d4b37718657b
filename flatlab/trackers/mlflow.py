"""MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where runs go."""

import os
import re
import time
from collections.abc import Mapping

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from flatlab.trackers.base import PROJECT, Tracked

os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # standard output is the command's


class Tracker:
    """One run at MLflow, through a client of its own, so that nothing is shared with a run that the user has open."""

    def start(self, run: Tracked) -> str:
        """Begin a run with the configuration as its parameters, or go on with it."""
        self.client = MlflowClient()
        if run.known_as:
            self.name = run.known_as
            self.client.update_run(self.name, status="RUNNING")
            return self.name
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        begun = self.client.create_run(self._experiment(project), run_name=run.name, tags={"group": run.group})
        self.name = begun.info.run_id
        settings = [Param(_allowed(name), str(value)) for name, value in run.settings.items()]
        self.client.log_batch(self.name, params=settings)
        return self.name

    def _experiment(self, project: str) -> str:
        """Its number; of runs that begin together, the first makes it."""
        found = self.client.get_experiment_by_name(project)
        if found is None:
            try:
                return str(self.client.create_experiment(project))
            except MlflowException:
                found = self.client.get_experiment_by_name(project)
                if found is None:
                    raise
        return str(found.experiment_id)

    def log(self, numbers: Mapping[str, float], round_: int) -> None:
        """Send the numbers."""
        now = int(1000 * time.time())
        metrics = [Metric(_allowed(tag), float(number), now, round_) for tag, number in numbers.items()]
        self.client.log_batch(self.name, metrics=metrics)

    def finish(self) -> None:
        """Say that the run is over."""
        self.client.set_terminated(self.name)


def _allowed(name: str) -> str:
    """The name with _ for what MLflow does not take in one."""
    return re.sub(r"[^\w\-. /:]", "_", name)
