"""What runs and measurements leave on the disk, as far as figures and tables read it; the only way to read it.

Files come from earlier versions and from other people: a record or measurement is checked against its form here, once,
so that what uses it can trust it. What no figure reads may hold anything. A number may be NaN or infinite, where a
measurement failed: figures leave it out, and tables say so.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError, model_validator

from figures.errors import ResultsError

Share = Annotated[float, Field(ge=0, le=1)] | Annotated[float, Field(allow_inf_nan=True)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Saved(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class Estimate(_Saved):
    """A number with its error."""

    value: float
    standard_error: float | None = None


class Eigenvalue(_Saved):
    """A number with its residual."""

    value: float
    residual: float | None = None


class Spectrum(_Saved):
    """Largest eigenvalues, the top first."""

    eigenvalues: list[Eigenvalue] = Field(min_length=1)


class Layer(Spectrum):
    """A layer's eigenvalues and activations."""

    name: str
    input_norm2: float | None = None
    output_norm2: float | None = None


class Data(_Saved):
    """What was measured on."""

    dataset: str
    split: str | None = None
    samples: Count


class Origin(_Saved):
    """The run that a measured checkpoint is of."""

    round: Count
    metrics: dict[str, Any] = {}


class Measured(_Saved):
    """What begins every measurement."""

    data: Data
    versions: dict[str, str] = {}
    run: Origin | None = None


class Eigs(Measured):
    """<checkpoint>.eigs.json."""

    run: Origin
    network: Spectrum = Field(alias="global")
    layers: list[Layer]


class Trace(Measured):
    """<checkpoint>.trace.json."""

    trace: Estimate


class Density(Measured):
    """<checkpoint>.density.json."""

    grid: list[Finite] = Field(min_length=2)
    density: list[float]
    standard_error: list[float | None]
    sigma: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    size: Annotated[int, Field(ge=1, le=2**53)]

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if not len(self.grid) == len(self.density) == len(self.standard_error):
            raise ValueError("grid, density and standard_error differ in length")
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


class Split(_Saved):
    """final.split.json: samples of each class, client by client."""

    counts: list[list[Count]] = Field(min_length=1)
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _every_client_has_samples(self) -> Self:
        if len({len(line) for line in self.counts}) != 1 or any(sum(line) < 1 for line in self.counts):
            raise ValueError("counts is not a table of classes by client in which every client has samples")
        return self


class Check(_Saved):
    """One statement on one network."""

    statement: str
    claimed: bool
    outcome: str


class Verify(_Saved):
    """<checkpoint>.verify.json."""

    checks: list[Check]
    versions: dict[str, str] = {}


class Other(_Saved):
    """A measurement that no figure of a grid reads."""

    versions: dict[str, str] = {}


class Claim(_Saved):
    """What MAN is claimed to do."""

    quantity: str
    direction: str
    ratio: bool


class Comparison(_Saved):
    """A claim in one setting."""

    setting: str
    pairs: Count
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    answer: str


class Group(_Saved):
    """What runs that are compared have in common, as far as a table names it."""

    dataset: str
    algorithm: str
    partition: str
    delta: float


class Verdict(_Saved):
    """A claim in all settings."""

    contrast: str
    group: Json[Group]
    claim: Claim
    comparisons: list[Comparison]
    answer: str


class Study(_Saved):
    """study.json."""

    verdicts: list[Verdict]


FORMS: Mapping[str, type[_Saved]] = {
    "eigs": Eigs, "trace": Trace, "density": Density, "surface": Surface, "split": Split, "verify": Verify,
}  # fmt: skip
"""Kind of measurement: its form."""


class Tracked(_Saved):
    """Top eigenvalues during training."""

    network: Eigenvalue = Field(alias="global")
    layers: dict[str, Eigenvalue] = {}


class RecordPart(_Saved):
    """A line of metrics.jsonl, or what a checkpoint keeps of one."""

    round: Annotated[int, Field(ge=1, le=2**53)] | None = None
    train_loss: float | None = None
    test_accuracy: Share | None = None
    curvature: Tracked | None = None

    @model_validator(mode="after")
    def _accuracy_is_a_share(self) -> Self:
        if self.test_accuracy is not None and (self.test_accuracy < 0 or self.test_accuracy > 1):
            raise ValueError(f"test_accuracy = {self.test_accuracy:g} is no share between 0 and 1")
        return self


class Record(RecordPart):
    """A line of metrics.jsonl."""

    round: Annotated[int, Field(ge=1, le=2**53)]


class Evaluation(_Saved):
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


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a metrics.jsonl, rounds ascending; none without a file. Raises `ResultsError`."""
    if not path.exists():
        return []
    lines = _text(path).splitlines(keepends=True)
    records: list[dict[str, Any]] = []
    for number, line in enumerate((line for line in lines if line.endswith("\n")), start=1):
        where = f"{path}, line {number}"
        records.append(check_record(_parsed(line, where), where))
        if number > 1 and records[-1]["round"] <= records[-2]["round"]:
            raise ResultsError(f"In {where}, round = {records[-1]['round']} does not follow the line before.")
    return records


def check_record(content: object, where: str, *, part: bool = False, evaluated: bool = False) -> dict[str, Any]:
    """Return a record of metrics; in `part` it may lack its round. Raises `ResultsError` that begins with `where`."""
    return _checked(RecordPart if part else Evaluated if evaluated else Record, content, where)


def read_measurement(path: Path, kind: str) -> dict[str, Any]:
    """Return what a command wrote beside a checkpoint; raises `ResultsError`."""
    return _checked(FORMS.get(kind, Other), read_json(path), str(path))


def read_study(path: Path) -> list[dict[str, Any]]:
    """Return the verdicts of `flatlab verify --study`; raises `ResultsError`."""
    verdicts: list[dict[str, Any]] = _checked(Study, read_json(path), str(path))["verdicts"]
    return verdicts


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; raises `ResultsError` where it is none."""
    return _parsed(_text(path), str(path))


def _checked(form: type[_Saved], content: object, where: str) -> dict[str, Any]:
    try:
        form.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part)[:80] for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        what = f"{field} does not fit: " if field else ""
        raise ResultsError(f"In {where}, {what}{reason[:1].lower()}{reason[1:]}.") from error
    assert isinstance(content, dict)
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path} is not valid JSON ({error}); delete it and measure again.") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # JSONDecodeError, and whole numbers of thousands of digits
        raise ResultsError(f"{where} is not valid JSON ({error}); delete it and measure again.") from error
    except RecursionError as error:
        raise ResultsError(f"{where} is not valid JSON (nested too deeply); delete it and measure again.") from error
