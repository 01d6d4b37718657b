"""What `flatlab verify` computes: the theory's statements on a checkpoint or a model, and on toys."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from analysis.errors import AsymmetryError
from analysis.problem import Problem
from analysis.theory.battery import Moment, Shift, ToyChecks, along_training, battery, shifts
from analysis.theory.chain import Chain, LayerChain, chain
from analysis.theory.statements import STATEMENTS, Check, Interval, Tally, broken, tally
from flatlab.errors import FlatlabError
from flatlab.federated.world import make_world
from flatlab.files import finite
from flatlab.malloc import keep_freed_memory
from flatlab.measuring.loss_samples import own_share
from flatlab.measuring.ranks import spread
from flatlab.measuring.result import Result
from flatlab.measuring.subjects import Measurement, Subject, open_checkpoint
from flatlab.runs.checkpoint import load_checkpoint, provenance
from flatlab.tell import Tell, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_SAMPLES = 200


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Verification(Result):
    """Every statement on one network, each side as the interval in which it lies."""

    title: ClassVar[str] = "The theory's statements"

    loss: float
    top: Interval  # lambda_max(H)
    smallest: Interval  # lambda_min(H)
    layers: Sequence[LayerChain]
    checks: Sequence[Check]

    @property
    def holds(self) -> bool:
        """Whether nothing that the theory claims is refuted."""
        return not broken(self.checks)

    def numbers(self) -> dict[str, Any]:
        """The chain; every number that is not exact as [low, high]."""
        layers = [
            {name: _ends(value) if isinstance(value, Interval) else value for name, value in vars(layer).items()}
            for layer in self.layers
        ]
        return {
            "loss": self.loss,
            "top": _ends(self.top),
            "smallest": _ends(self.smallest),
            "layers": layers,
            "checks": [
                {
                    "statement": check.statement,
                    "layer": check.layer,
                    "claimed": check.claimed,
                    "outcome": check.outcome,
                    "left": _ends(check.left),
                    "right": _ends(check.right),
                    "slack": finite(check.slack),
                }
                for check in self.checks
            ],
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per check; both sides as they are quoted."""
        return [
            {
                "statement": check.statement,
                "layer": check.layer,
                "formula": STATEMENTS[check.statement],
                "left": check.left.quoted,
                "right": check.right.quoted,
                "claimed": check.claimed,
                "outcome": check.outcome,
            }
            for check in self.checks
        ]

    def plot(self) -> "Figure":
        """Every layer's top eigenvalue and the bounds above it."""
        from figures.theory_chain import draw_theory_chain

        return draw_theory_chain([self.to_dict()]).figure


def verify_subject(subject: Subject, clients: Mapping[str, Problem], tell: Tell = silent) -> Verification:
    """Check every statement on `subject`, a mean in float64, and F on `clients`, where there are any."""
    found: Chain = chain(subject.problem, clients, tell)
    return Verification(
        about=subject.about,
        settings={"samples": found.samples, "dtype": "float64"},
        seconds=found.seconds,
        loss=found.loss,
        top=found.top,
        smallest=found.smallest,
        layers=found.layers,
        checks=found.checks,
    )


def open_with_clients(path: Path, measurement: Measurement) -> tuple[Subject, dict[str, Problem]]:
    """The checkpoint's loss in float64 on the samples that every command draws, and on those that each client holds.

    Raises `UsageError` for a bad file, `FlatlabError` where products are not even symmetric.
    """
    try:
        subject = open_checkpoint(path, replace(measurement, dtype="float64", most=DEFAULT_SAMPLES))
    except AsymmetryError as error:
        raise FlatlabError(str(error)) from error
    assert subject.places is not None
    world = make_world(load_checkpoint(path).config, measurement.data_root)
    held = {str(k): subject.places[np.isin(subject.places, part)] for k, part in enumerate(world.parts)}
    clients = {
        name: subject.problem.on(
            own_share(world.data, places, torch.float64, measurement.device), distributed=spread(len(places))
        )
        for name, places in held.items()
        if len(places)
    }
    return subject, clients


@dataclass(frozen=True)
class ToyBattery:
    """The statements on toy networks by dense Hessians, S1 and S2 along training, and where MAN moves the curvature."""

    cases: Sequence[ToyChecks]
    training: Sequence[Moment]
    shift: Sequence[Shift]
    seconds: float

    @property
    def checks(self) -> list[Check]:
        """Those of all toys."""
        return [check for case in self.cases for check in case.checks]

    @property
    def tallies(self) -> list[Tally]:
        """The checks counted, by statement."""
        return tally(self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return what `flatlab verify --json` writes."""
        return {
            "cases": len(self.cases),
            "statements": [{**vars(row), "formula": STATEMENTS[row.statement]} for row in self.tallies],
            "toys": [_plain_case(case) for case in self.cases],
            "training": [{**vars(m), "slack1": m.slack1, "slack2": m.slack2} for m in self.training],
            "shift": [asdict(shift) for shift in self.shift],
            "seconds": self.seconds,
            "versions": provenance(),
        }


def toy_battery(tell: Tell = silent) -> ToyBattery:
    """Check the statements on toys: about a minute."""
    keep_freed_memory()
    began = time.perf_counter()
    cases = list(battery(tell))
    moments, moved = along_training(tell), shifts(tell)
    return ToyBattery(cases, moments, moved, time.perf_counter() - began)


def require_unbroken(checks: Sequence[Check]) -> None:
    """Raise `FlatlabError` naming the first claim that is refuted."""
    failed = broken(checks)
    if failed:
        first = failed[0]
        where = f" in layer {first.layer}" if first.layer else ""
        raise FlatlabError(
            f"Statement {first.statement} must hold{where} and does not ({first.left.quoted:.6g} against "
            f"{first.right.quoted:.6g}; {len(failed)} such in all): a product or a bound is computed wrongly."
        )


def _plain_case(case: ToyChecks) -> dict[str, Any]:
    checks = [{**vars(check), "left": check.left.quoted, "right": check.right.quoted} for check in case.checks]
    return {
        **vars(case),
        "checks": [{**check, "outcome": c.outcome} for check, c in zip(checks, case.checks, strict=True)],
    }


def _ends(interval: Interval) -> list[float | None]:
    """JSON has no infinity."""
    return [finite(interval.low), finite(interval.high)]
