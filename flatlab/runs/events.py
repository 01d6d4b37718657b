"""TensorBoard event files (`--tensorboard`)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flatlab.errors import UsageError
from flatlab.files import writing
from flatlab.runs.metrics import Record

SCALARS = {
    "train/loss": "train_loss",
    "train/learning_rate": "lr",
    "train/images_per_second": "images_per_second",
    "test/accuracy": "test_accuracy",
    "test/loss": "test_loss",
    "activation/norm2": "activation_norm",
}
"""Tag: field of the record."""


@contextmanager
def event_writer(folder: Path, completed: int) -> Iterator[Callable[[Record], None]]:
    """Yield what writes a record to event files in `folder`; those there beyond round `completed` are superseded.

    Raises `UsageError` where TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard needs TensorBoard: pip install 'flatlab[tensorboard]'.") from error
    with writing(folder):
        writer = SummaryWriter(str(folder), purge_step=completed + 1)

    def write(record: Record) -> None:
        with writing(folder):
            add(record)

    def add(record: Record) -> None:
        step = record["round"]
        for tag, name in SCALARS.items():
            if name in record:
                writer.add_scalar(tag, record[name], step)
        for name, result in record.get("models", {}).items():
            writer.add_scalar(f"test/accuracy_{name}", result["accuracy"], step)
        if "curvature" in record:
            for name, entry in {"network": record["curvature"]["global"], **record["curvature"]["layers"]}.items():
                tag = "eigenvalue" if entry["converged"] else "eigenvalue_not_converged"
                writer.add_scalar(f"{tag}/{name}", entry["value"], step)

    try:
        yield write
    finally:
        with writing(folder):
            writer.close()
