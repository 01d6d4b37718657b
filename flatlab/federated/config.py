"""The description of a run: everything that changes its result, validated, and nothing else.

Where it runs (worker processes, device, folder) is not part of it: the same `RunConfig` gives the same checkpoint.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flatlab.data.samples import Reading
from flatlab.errors import UsageError, shown
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.algorithms.base import Algorithm, Hyper
from flatlab.federated.complaints import below, one_sentence
from flatlab.federated.own_algorithm import find_algorithm, hyper_of, require_plain
from flatlab.federated.partition import KINDS
from flatlab.federated.precision import Precision
from flatlab.federated.server_average import averaging, cycled
from flatlab.federated.spelling import in_small_letters
from flatlab.functions import names_function

MOST = 2**31 - 1
"""Largest count of anything; no run reaches it, and every library can hold it."""

LEAST_EXPECTED = 0.01
"""Participants that a round must expect: with fewer, the draw would be repeated over a hundred times per round."""

PARTS_OF_MAN = ("zeta_logits", "man_layers")
"""Fields that only a run with MAN may have."""

Count = Annotated[int, Field(ge=1, le=MOST)]
Line = Annotated[str, Field(min_length=1, max_length=1000)]


class RunConfig(BaseModel):
    """One federated training run. Field by field what fl-algorithms calls N, E, B, eta_0, ...; see each description.

    Types are strict: 1e9 is no whole number, and true no number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, strict=True)

    dataset: Line = Field(
        "digits",
        description="digits, cifar10, ..., a name on the hub, a folder, a CSV or Parquet file, or module:function",
    )
    train_samples: Count | None = Field(None, description="train on a class-balanced subset of this size")
    test_samples: Count | None = Field(None, description="test on a class-balanced subset of this size")

    label_column: Line | None = Field(None, description="column of the labels, where it is not found by its type")
    hub_config: Line | None = Field(None, description="configuration of a data set on the hub")
    holdout: float | None = Field(
        None, gt=0, lt=1, description="share of the training split that is the test split, drawn class by class"
    )
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = Field(None, description="side to which images are scaled")
    augmentation: Literal["auto", "none", "flip-crop"] = Field(
        "auto", description="of training images; auto: flip-crop for CIFAR and Tiny-ImageNet, none for all others"
    )

    clients: Count = Field(20, description="N, number of clients")
    partition: str = Field("dirichlet", description=f"how the training set is split: {', '.join(KINDS)}")
    delta: float = Field(0.3, gt=0, le=1e6, description="concentration of the Dirichlet splits; small means skewed")
    classes_per_client: Count = Field(2, description="classes that each client holds, of the split by classes")
    shards_per_client: Count = Field(2, description="pieces that each client is dealt, of the split by shards")
    sigma: float = Field(1.0, ge=0, le=100, description="deviation of the logarithm of sizes, of lognormal-sizes")
    partition_column: Line | None = Field(None, description="column of the data whose values are the clients")
    partition_file: Line | None = Field(None, description="JSON file that says which samples each client has")

    model: Line = Field("auto", description="mlp, cifar-cnn, tiny-convnet, resnet18-gn or package.module:function")
    hidden: tuple[Annotated[int, Field(le=MOST)], ...] = Field(
        (64, 32), max_length=1000, description="widths of the MLP's hidden layers"
    )
    activation: Literal["relu", "tanh"] = Field("relu", description="the MLP's nonlinearity")

    algorithm: Line = Field("fedavg", description=f"{', '.join(ALGORITHMS)}, or package.module:ALGORITHM")
    hyper: dict[str, Any] = Field(
        default_factory=dict, description="the algorithm's hyperparameters (mu, rho, alpha, ...)"
    )
    man: bool = Field(False, description="add zeta/2 times the layerwise activation norm to every client's loss")
    zeta: float = Field(0.15, ge=0, description="coefficient of MAN, used where man is true")
    zeta_logits: float = Field(
        0.0, ge=0, description="coefficient of the logits' mean square, part of MAN; 0: the paper's"
    )
    man_layers: tuple[Annotated[str, Field(strict=True)], ...] = Field(
        (), strict=False, description="modules whose outputs MAN penalises; none: every nonlinearity's result"
    )

    rounds: Count = Field(60, description="communication rounds")
    participation: float = Field(0.5, gt=0, le=1, description="share of the clients that take part in a round")
    sampling: Literal["fixed", "bernoulli"] = Field("fixed", description="exactly that share, or each with that chance")
    local_epochs: Count = Field(5, description="E, epochs over a client's data per round")
    batch_size: Count = Field(20, description="B, samples per local step")
    lr: float = Field(0.1, gt=0, description="eta_0, learning rate of round 0")
    lr_decay: float = Field(0.998, gt=0, le=1, description="eta_t = eta_0 * lr_decay^t")
    lr_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="a factor of eta_t beside lr_decay: 1, or (1 + cos(pi t / rounds)) / 2"
    )
    weight_decay: float = Field(1e-3, ge=0, description="added to the gradient after clipping")
    clip: float = Field(10.0, gt=0, description="norm to which the gradient is clipped")

    swa_start: float | None = Field(
        None, gt=0, lt=1, description="share of the rounds after which the server's models are averaged; none: never"
    )
    swa_every: Count = Field(10, description="rounds between two models in that average, a cycle of the learning rate")

    report: Literal["server", "selected", "all", "swa"] = Field(
        "server", description="the model that test_accuracy and the checkpoint speak of"
    )
    eval_every: int = Field(
        0,
        ge=0,
        le=MOST,
        description="rounds between evaluations, beside checkpoints'; 0: under 5 % of training",
    )
    checkpoint_every: Count = Field(100, description="rounds between checkpoints")
    dtype: Literal["float32", "float64"] = Field("float32", description="type of parameters, vectors and update")
    precision: Precision = Field(
        "ieee", description="forward and backward passes of training: ieee, tf32 (on a GPU), or bf16 by autocast"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="every random stream of the run starts here")

    @field_validator("hidden")
    @classmethod
    def _widths_are_positive(cls, hidden: tuple[int, ...]) -> tuple[int, ...]:
        if any(width < 1 for width in hidden):
            raise ValueError("every hidden layer needs at least one unit")
        return hidden

    @field_validator("man_layers")
    @classmethod
    def _layers_are_named_once(cls, layers: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(layers)) < len(layers):
            raise ValueError("every layer is named once")
        return layers

    @field_validator("partition")
    @classmethod
    def _partition_is_known(cls, name: str) -> str:
        if name not in KINDS:
            raise ValueError(f"no such split; choose from {', '.join(KINDS)}")
        return name

    @field_validator("dataset", "model", "label_column", "hub_config", "partition_column", "partition_file")
    @classmethod
    def _names_are_one_line(cls, name: str | None) -> str | None:
        if name is None:
            return None
        if not name.isprintable():
            raise ValueError("a name holds no line breaks and other control characters")
        if any(len(part.encode()) > 255 for part in name.split("/")):
            raise ValueError("no file's name is as long as that")
        return name

    @field_validator("algorithm")
    @classmethod
    def _algorithm_is_known(cls, name: str) -> str:
        if name not in ALGORITHMS and not names_function(name):
            raise ValueError(
                f"no such algorithm; choose from {', '.join(ALGORITHMS)}, or name your own as package.module:ALGORITHM"
            )
        return name

    @field_validator("hyper")
    @classmethod
    def _hyper_is_plain(cls, hyper: dict[str, Any]) -> dict[str, Any]:
        require_plain(hyper)
        return hyper

    @field_validator("hidden", "man_layers", mode="before")
    @classmethod
    def _files_write_tuples_as_lists(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="before")
    @classmethod
    def _complete_hyper(cls, fields: Any) -> Any:
        """Replace `hyper` by the algorithm's full set, so that a checkpoint states every value it was trained with."""
        if not isinstance(fields, dict):
            return fields
        fields = in_small_letters(fields)
        name = fields.get("algorithm", "fedavg")
        given = fields.get("hyper", {})
        hyper = hyper_of(name)
        if hyper is None or not isinstance(given, dict):
            return fields  # the fields' own types say what is wrong
        for key in given:
            if key not in hyper.model_fields:
                known = ", ".join(hyper.model_fields) or "none"
                raise ValueError(f"{name} has no hyperparameter {shown(key)} (it has: {known})")
        try:
            full = hyper.model_validate(given).model_dump()
            again = hyper.model_validate(full).model_dump()
        except ValidationError as error:
            raise below("hyper", error) from error
        for key in full:
            if again[key] != full[key]:
                raise ValueError(
                    f"a validator of {name} makes {key} = {shown(full[key])} into {shown(again[key])} when it is read "
                    "again from the run's files: convert it where it is used instead"
                )
        return {**fields, "hyper": full}

    @model_validator(mode="after")
    def _clients_are_named_where_the_split_asks(self) -> Self:
        for kind in ("column", "file"):
            field = KINDS[kind].parameter
            named = getattr(self, f"partition_{kind}") is not None
            if self.partition == kind and not named:
                raise ValueError(f"partition = {kind} needs {field}")
            if named and self.partition != kind:
                raise ValueError(f"{field} goes with partition = {kind}, not {self.partition}")
        return self

    @model_validator(mode="after")
    def _parts_belong_to_man(self) -> Self:
        for name in PARTS_OF_MAN:
            if (value := getattr(self, name)) and not self.man:
                said = list(value) if isinstance(value, tuple) else f"{value:g}"
                raise ValueError(f"{name} = {said} is part of MAN, which is off; set man to true as well")
        return self

    @model_validator(mode="after")
    def _an_average_is_kept_before_it_is_reported(self) -> Self:
        if self.report == "swa" and self.swa_start is None:
            raise ValueError("report = swa speaks of an average that swa_start asks for, as 0.75")
        if self.swa_from is not None and (first := self.swa_from + self.swa_every) > self.rounds:
            raise ValueError(
                f"swa_start = {self.swa_start:g} and swa_every = {self.swa_every} average no model: the first would be "
                f"that of round {first} of {self.rounds}; lower one of them"
            )
        return self

    @model_validator(mode="after")
    def _half_precision_is_of_float32(self) -> Self:
        if self.precision != "ieee" and self.dtype != "float32":
            raise ValueError(f"precision = {self.precision} goes with dtype = float32, not {self.dtype}")
        return self

    @model_validator(mode="after")
    def _rounds_have_participants(self) -> Self:
        if self.participation * self.clients < LEAST_EXPECTED:
            raise ValueError(
                f"participation = {self.participation:g} of {self.clients} clients leaves the rounds without any; "
                f"ask for a share of {LEAST_EXPECTED / self.clients:g} or more"
            )
        return self

    @property
    def reading(self) -> Reading:
        """How the data set is read."""
        return Reading(self.label_column, self.hub_config, self.holdout, self.image_size, self.partition_column)

    @property
    def reports_all(self) -> bool:
        """Whether the run speaks of the mean over all clients of their last models, each of which is then kept."""
        return self.report == "all"

    @property
    def rules(self) -> Algorithm:
        """The algorithm itself, with the average of the server's models where that is asked for.

        Raises `UsageError` for a user's own that the command line did not name.
        """
        rules = find_algorithm(self.algorithm)
        return rules if self.swa_from is None else averaging(rules, self.swa_from, self.swa_every)

    @property
    def swa_from(self) -> int | None:
        """The round after which the server's models are averaged, if they are."""
        return None if self.swa_start is None else round(self.swa_start * self.rounds)

    @property
    def hyperparameters(self) -> Hyper:
        """The algorithm's hyperparameters, typed."""
        return self.rules.hyper.model_validate(self.hyper)

    def learning_rate(self, t: int) -> float:
        """eta_t, of round t = 0, 1, ..."""
        eta = self.lr * self.lr_decay**t
        if self.lr_schedule == "cosine":
            eta *= (1 + math.cos(math.pi * t / self.rounds)) / 2
        return eta if self.swa_from is None else cycled(eta, t - self.swa_from, self.swa_every)

    @property
    def effective_zeta(self) -> float:
        """Coefficient of MAN in the clients' loss; 0 where MAN is off."""
        return self.zeta if self.man else 0.0

    def own_options(self, *fields: str) -> list[str]:
        """The words by which a command on the run lets the user's own code run that is its `fields`, model and such."""
        named = {field: getattr(self, field) for field in fields}
        return [word for field, name in named.items() if names_function(name) for word in (f"--{field}", name)]

    def plain(self) -> dict[str, Any]:
        """Return the run as plain data for TOML, JSON and checkpoints; fields that are None are left out."""
        return self.model_dump(mode="json", exclude_none=True)


def make_config(fields: object, source: str = "the options") -> RunConfig:
    """Validate `fields`; raises `UsageError` naming `source`, the field, its value and what was expected."""
    try:
        return RunConfig.model_validate(_of_python(fields))
    except ValidationError as error:
        raise UsageError(one_sentence(error, source, RunConfig.model_fields)) from error


def _of_python(value: object) -> object:
    """The value with scalars of NumPy, as np.arange has them, made Python's: types are strict."""
    if isinstance(value, Mapping):
        return {name: _of_python(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_of_python, value)] if isinstance(value, list) else tuple(map(_of_python, value))
    return value.item() if isinstance(value, np.generic) else value
