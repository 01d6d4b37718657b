"""TensorBoard: event files in the run's folder."""

from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from flatlab.trackers.base import Tracked


class Tracker:
    """Writes event files; those there of later rounds than the run had are superseded."""

    def start(self, run: Tracked) -> str:
        """Open a file of events."""
        self.writer = SummaryWriter(str(run.folder), purge_step=run.completed + 1)
        return str(run.folder)

    def log(self, numbers: Mapping[str, float], round_: int) -> None:
        """Write the numbers."""
        for tag, number in numbers.items():
            self.writer.add_scalar(tag, number, round_)

    def finish(self) -> None:
        """Close the file."""
        self.writer.close()
