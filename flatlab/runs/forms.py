"""The form of what measurements leave on the disk, as far as figures and tables read it.

What no figure reads may be anything. A number may be NaN or infinite, where a measurement failed, for which our JSON
has null: figures leave it out, and tables say so.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, Json, model_validator

Count = Annotated[int, Field(ge=0, le=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

_NUMBERS = (float, list[float], list[list[float]])


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return math.nan if value is None else value


class Saved(BaseModel):
    """Strict about types; what is not named here may be anything."""

    model_config = ConfigDict(extra="ignore", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_finite(cls, content: Any) -> Any:
        """JSON has no NaN, and null is written in its place: where a number is read it is NaN again, in `content`."""
        for name, field in cls.model_fields.items() if isinstance(content, dict) else ():
            key = field.alias or name
            if key in content and field.annotation in _NUMBERS and not field.metadata:  # those may be any number
                content[key] = _numbers(content[key])
        return content


class Estimate(Saved):
    """A number with its error."""

    value: float
    standard_error: float | None = None
    converged: bool | None = None
    rounded: bool | None = None


class Eigenvalue(Saved):
    """A number with its residual, and whether that met the tolerance and nothing beyond it was overlooked."""

    value: float
    residual: float | None = None
    converged: bool | None = None
    rounded: bool | None = None


class Spectrum(Saved):
    """Largest eigenvalues, the top first."""

    eigenvalues: list[Eigenvalue] = Field(min_length=1)


class Layer(Spectrum):
    """A layer's eigenvalues and activations."""

    name: str
    input_norm2: float | None = None
    output_norm2: float | None = None


class RelativeFlatness(Saved):
    """A layer's squared weights times its trace."""

    by_trace: float


class Data(Saved):
    """What was measured on."""

    dataset: str
    split: str | None = None
    samples: Count


class Origin(Saved):
    """The run that a measured checkpoint is of."""

    round: Count
    metrics: dict[str, Any] = {}


class Digests(Saved):
    """Which run was measured (`flatlab.runs.fingerprint`)."""

    config: str = ""
    data: str = ""
    weights: str = ""


class Made(Saved):
    """How a measurement was made, and of what."""

    settings: dict[str, Any] = {}
    fingerprint: Digests = Digests()
    versions: dict[str, str] = {}


class Other(Made):
    """A measurement of any kind, as far as it says how it was made and of what."""

    data: dict[str, Any] = {}
    run: dict[str, Any] | None = None
    nodes: list[Any] = []
    losses: list[Any] = []


class Measured(Made):
    """What begins every measurement of a loss."""

    data: Data
    run: Origin | None = None


class Eigs(Measured):
    """<checkpoint>.eigs.json."""

    run: Origin
    network: Spectrum = Field(alias="global")
    layers: list[Layer]


class Trace(Measured):
    """<checkpoint>.trace.json."""

    trace: Estimate
    converged: bool | None = None
    rounded: bool | None = None


class Flatness(Measured):
    """<checkpoint>.flatness.json."""

    adaptive_sharpness: Estimate
    worst_case_sharpness: Estimate | None = None
    layers: list[RelativeFlatness]
    trace: Estimate | None = None


class Means(Saved):
    """Of a number, over clients."""

    own_at_own: float
    whole_at_global: float
    discrepancy: float
    transfer: float


class AtOwnModel(Spectrum):
    """Curvature of a client's loss at its own model."""

    trace: Estimate | None = None


class Client(Saved):
    """A client's curvature."""

    own_at_own: AtOwnModel


class Local(Measured):
    """clients-<round>.local.json."""

    run: Origin
    network: Spectrum | None = Field(None, alias="global")
    clients: list[Client] = []
    means: dict[str, Means]
    distance: float

    @model_validator(mode="after")
    def _eigenvalues_are_there(self) -> Self:
        if "eigenvalue" not in self.means:
            raise ValueError("means has no eigenvalue")
        return self


class Density(Measured):
    """<checkpoint>.density.json."""

    grid: list[Finite] = Field(min_length=2)
    nodes: list[list[Finite]] = []
    node_weights: list[list[Finite]] | None = None  # older files have none
    density: list[float]
    standard_error: list[float | None]
    sigma: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    size: Annotated[int, Field(ge=1, le=2**53)]

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if not len(self.grid) == len(self.density) == len(self.standard_error):
            raise ValueError("grid, density and standard_error differ in length")
        if self.node_weights is not None and [len(w) for w in self.node_weights] != [len(n) for n in self.nodes]:
            raise ValueError("nodes and node_weights differ in length")
        return self


class Surface(Measured):
    """<checkpoint>.surface.json; `losses` has a line for each of `a`, and in it a number for each of `b`."""

    a: list[Finite] = Field(min_length=2)
    b: list[Finite] = Field(min_length=1)
    losses: list[list[float]]

    @model_validator(mode="after")
    def _shapes_agree(self) -> Self:
        if len(self.losses) != len(self.a) or any(len(line) != len(self.b) for line in self.losses):
            raise ValueError("losses is not a table of as many lines and columns as a and b have numbers")
        return self


class Split(Made):
    """final.split.json: samples of each class, client by client."""

    counts: list[list[Count]] = Field(min_length=1)

    @model_validator(mode="after")
    def _every_client_has_samples(self) -> Self:
        if len({len(line) for line in self.counts}) != 1 or any(sum(line) < 1 for line in self.counts):
            raise ValueError("counts is not a table of classes by client in which every client has samples")
        return self


class Check(Saved):
    """One statement on one network."""

    statement: str
    claimed: bool
    outcome: str


class Verify(Made):
    """<checkpoint>.verify.json."""

    checks: list[Check]


class Claim(Saved):
    """What MAN is claimed to do."""

    quantity: str
    direction: str
    ratio: bool


class Comparison(Saved):
    """A claim in one setting."""

    setting: str
    pairs: Count
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    answer: str
    doubt: str = ""


class Group(Saved):
    """What runs that are compared have in common, as far as a table names it."""

    dataset: str
    algorithm: str
    partition: str
    delta: float


class Verdict(Saved):
    """A claim in all settings."""

    contrast: str
    group: Json[Group]
    claim: Claim
    comparisons: list[Comparison]
    answer: str


class Studied(Saved):
    """A checkpoint of a study."""

    checkpoint: str
    fingerprint: Digests = Digests()


class Study(Saved):
    """study.json."""

    verdicts: list[Verdict]
    subjects: list[Studied] = []


FORMS: Mapping[str, type[Made]] = {
    "eigs": Eigs, "trace": Trace, "density": Density, "surface": Surface, "split": Split, "verify": Verify,
    "flatness": Flatness, "local": Local,
}  # fmt: skip
"""Of every kind of measurement that figures and tables of runs are made from: its form."""
