"""The form of the lines of metrics.jsonl, as far as figures, tables and resuming read them."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from flatlab.runs.forms import Eigenvalue, Saved


class Tracked(Saved):
    """Top eigenvalues during training."""

    network: Eigenvalue = Field(alias="global")
    layers: dict[str, Eigenvalue] = Field(default_factory=dict)


class RecordPart(Saved):
    """A line of metrics.jsonl, or what a checkpoint keeps of one."""

    round: Annotated[int, Field(ge=1, le=2**53)] | None = None
    train_loss: float | None = None
    test_accuracy: float | None = None
    curvature: Tracked | None = None

    @model_validator(mode="after")
    def _accuracy_is_a_share(self) -> Self:
        if self.test_accuracy is not None and (self.test_accuracy < 0 or self.test_accuracy > 1):
            raise ValueError(f"test_accuracy = {self.test_accuracy:g} is no share between 0 and 1")
        return self


class Record(RecordPart):
    """A line of metrics.jsonl."""

    round: Annotated[int, Field(ge=1, le=2**53)]


class Evaluation(Saved):
    """One model on the test set."""

    accuracy: float
    loss: float
    activation_norms: list[float] | tuple[float, ...]


class Evaluated(Record):
    """A line with an evaluation."""

    train_loss: float
    test_accuracy: float
    images_per_second: float
    models: dict[str, Evaluation]
