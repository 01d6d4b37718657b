"""Does training with MAN do what the theory suggests? What is measured of each network, and what many of them say."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from analysis.activations import forward_pass
from analysis.eigenpairs import Eigenpairs
from analysis.flatness import FlatnessReport, flatness
from analysis.problem import Problem
from analysis.spectrum import layer_eigenpairs
from analysis.theory.verdicts import (
    Answer,
    Claim,
    Comparison,
    Correlation,
    Point,
    compare,
    corrected,
    correlate,
    verdict,
)

TOL, TRACE_TOL = 1e-3, 0.05

CONTRASTS = {
    "MAN": ("activations", ""),
    "MAN with the logits penalised as well": ("activations and logits", ""),
    "only the logits penalised": ("logits", ""),
    "the logits penalised beside MAN, against MAN alone": ("activations and logits", "activations"),
}
"""What is compared: the runs that penalise the one (`Subject.penalised`) with those that penalise the other."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LayerMeasures:
    """One layer."""

    name: str
    top: float  # lambda_max(H_ll)
    top_error: float  # its residual
    input_norm2: float  # mean |a|^2 entering
    output_norm2: float  # mean |a|^2 leaving, after the nonlinearity


@dataclass(frozen=True)
class Measures:
    """What is compared between networks; relative flatness is summed over the layers' weights (analysis.flatness)."""

    loss: float
    top: float  # lambda_max(H)
    top_error: float
    trace: float
    trace_error: float
    relative_top: float  # sum_l |W_l|_F^2 lambda_max
    relative_trace: float  # sum_l |W_l|_F^2 tr
    adaptive_sharpness: float
    layers: Sequence[LayerMeasures]
    doubts: Mapping[str, str] = field(default_factory=dict)  # by quantity: "!" not converged, "~" but for rounding


def measure(problem: Problem, progress: Progress = lambda stage: None) -> Measures:
    """Measure one network."""
    report = flatness(
        problem, tol=TOL, trace_tol=TRACE_TOL, progress=lambda stage, *_: progress(stage or "whole network")
    )
    tops = layer_eigenpairs(problem, tol=TOL, progress=lambda stage, *_: progress(stage))
    norms = forward_pass(problem).layers
    whole = report.eigenvalues[0]
    return Measures(
        loss=report.loss,
        top=whole.value,
        top_error=whole.residual,
        trace=report.trace.value,
        trace_error=report.trace.standard_error,
        relative_top=sum(layer.by_eigenvalue for layer in report.layers),
        relative_trace=sum(layer.by_trace for layer in report.layers),
        adaptive_sharpness=report.adaptive_sharpness,
        layers=[
            LayerMeasures(
                name,
                pairs.values[0].item(),
                pairs.residuals[0].item(),
                norms[name].input_norm2,
                norms[name].output_norm2,
            )
            for name, pairs in tops.items()
        ],
        doubts=_doubts(report, tops),
    )


def _doubts(report: FlatnessReport, tops: Mapping[str, Eigenpairs]) -> dict[str, str]:
    whole, layers = report.eigenvalues[0], tops.items()
    of_layers = {f"λmax of {name}": _mark(bool(p.converged[0]), bool(p.rounded[0])) for name, p in layers}
    of_weights = [_mark(layer.top.converged, layer.top.rounded) for layer in report.layers]  # without their biases
    of_trace = _mark(report.trace_converged, report.trace_rounded)
    marks = {
        **of_layers,
        "λmax of the network": _mark(whole.converged, whole.rounded),
        "trace": of_trace,
        "relative flatness (λmax)": min(filter(None, of_weights), default=""),
        "relative flatness (trace)": of_trace,
    }
    return {quantity: mark for quantity, mark in marks.items() if mark}


def _mark(converged: bool, rounded: bool) -> str:
    return "" if converged else "~" if rounded else "!"


@dataclass(frozen=True)
class Subject:
    """One checkpoint: where it stands in the study, and what was measured of it."""

    checkpoint: str
    group: str  # what it shares with the runs it is compared with
    zeta: float  # 0 without MAN
    zeta_logits: float
    seed: int
    round: int
    accuracy: float
    measures: Measures
    man_layers: tuple[str, ...] = ()  # that MAN is confined to

    @property
    def setting(self) -> str:
        """MAN's coefficients, and the layers it is confined to."""
        logits = f", logits {self.zeta_logits:g}" if self.zeta_logits else ""
        return f"ζ = {self.zeta:g}{logits}{''.join(f', {name}' for name in self.man_layers)}"

    @property
    def penalised(self) -> str:
        """What training made small: "activations" (MAN), "logits", both, or "" for neither."""
        terms = {"activations": self.zeta, "logits": self.zeta_logits}
        return " and ".join(name for name, coefficient in terms.items() if coefficient)

    @property
    def quantities(self) -> dict[str, float]:
        """What claims are made of."""
        layers = self.measures.layers
        return {
            **{f"mean |a|² after {layer.name}": layer.output_norm2 for layer in layers[:-1]},
            **{f"λmax of {layer.name}": layer.top for layer in layers},
            "λmax of the network": self.measures.top,
            "trace": self.measures.trace,
            "relative flatness (λmax)": self.measures.relative_top,
            "relative flatness (trace)": self.measures.relative_trace,
            "adaptive sharpness": self.measures.adaptive_sharpness,
            "test accuracy": self.accuracy,
        }


@dataclass(frozen=True)
class ClaimVerdict:
    """What one group of runs says to one claim in one contrast, over all coefficients."""

    group: str
    claim: Claim
    contrast: str  # of `CONTRASTS`
    comparisons: Sequence[Comparison]

    @property
    def answer(self) -> Answer:
        """Supported at every setting, contradicted at one, or undecided."""
        return verdict(self.comparisons)


def claims_about(subject: Subject) -> list[Claim]:
    """The paper's claims: every quantity lower, and accuracy higher."""
    return [
        Claim(quantity, "higher", ratio=False) if quantity == "test accuracy" else Claim(quantity, "lower")
        for quantity in subject.quantities
    ]


def conclude(subjects: Iterable[Subject]) -> list[ClaimVerdict]:
    """Answer every contrast in every group of runs, seed by seed, after the last round of all.

    The p-values of all groups and contrasts are corrected together.
    """
    compared: list[tuple[str, str, Comparison]] = []
    for group, runs in _grouped(subjects, lambda s: s.group).items():
        last = [run for run in runs if run.round == max(other.round for other in runs)]
        for contrast, (penalised, other) in CONTRASTS.items():
            for own in _grouped((r for r in last if r.penalised == penalised), _coefficients).values():
                without = [r for r in last if r.penalised == other and (not r.zeta or _is_same_man(r, own[0]))]
                x, y = ({run.seed: run.quantities for run in side} for side in (own, without))
                pairs = [run for run in (*own, *without) if run.seed in x.keys() & y.keys()]
                for comparison in compare(claims_about(own[0]), y, {own[0].setting: x}):
                    marks = [run.measures.doubts.get(comparison.claim.quantity, "") for run in pairs]
                    marked = replace(comparison, doubt=min(filter(None, marks), default=""))
                    compared.append((group, contrast, marked))
    together = corrected([comparison for _, _, comparison in compared])
    verdicts: dict[tuple[str, str, Claim], list[Comparison]] = defaultdict(list)
    for (group, contrast, _), comparison in zip(compared, together, strict=True):
        verdicts[group, contrast, comparison.claim].append(comparison)
    return [ClaimVerdict(group, claim, contrast, own) for (group, contrast, claim), own in verdicts.items()]


def correlations(subjects: Sequence[Subject]) -> list[Correlation]:
    """Activation norm entering a layer against its eigenvalue, with the means of what is held fixed taken away.

    Over layers (within a run), over coefficients (within a seed), over seeds (within a coefficient), all after the last
    round, and over rounds (within a run).
    """
    last = [s for s in subjects if s.round == max(o.round for o in subjects if o.group == s.group)]
    found = [correlate("layers", "", [p for run in last for p in _points(run, None, run.checkpoint)])]
    names = list(dict.fromkeys(layer.name for subject in subjects for layer in subject.measures.layers))
    ways: list[tuple[str, Sequence[Subject], Callable[[Subject], Hashable]]] = [
        ("coefficients", last, lambda s: (s.group, s.seed)),
        ("seeds", last, lambda s: (s.group, _coefficients(s))),
        ("rounds", subjects, lambda s: (s.group, _coefficients(s), s.seed)),
    ]
    for over, chosen, fixed in ways:
        for name in names:
            found.append(correlate(over, name, [p for run in chosen for p in _points(run, name, fixed(run))]))
    return [correlation for correlation in found if correlation is not None]


def unpaired(subjects: Sequence[Subject]) -> list[str]:
    """The checkpoints after the last round beside which no other one stands that differs in MAN alone."""
    last = [s for s in subjects if s.round == max(o.round for o in subjects if o.group == s.group)]
    contrasts = [set(sides) for sides in CONTRASTS.values()]

    def beside(one: Subject, other: Subject) -> bool:
        same_man = not one.zeta or not other.zeta or _is_same_man(one, other)
        return one.seed == other.seed and same_man and {one.penalised, other.penalised} in contrasts

    runs = _grouped(last, lambda s: s.group)
    return [s.checkpoint for s in last if not any(beside(s, other) for other in runs[s.group])]


def _is_same_man(one: Subject, other: Subject) -> bool:
    return (one.zeta, one.man_layers) == (other.zeta, other.man_layers)


def _coefficients(subject: Subject) -> tuple[float, float, tuple[str, ...]]:
    return subject.zeta, subject.zeta_logits, subject.man_layers


def _points(subject: Subject, name: str | None, group: Hashable) -> list[Point]:
    return [
        Point(group, subject.seed, layer.input_norm2, layer.top)
        for layer in subject.measures.layers
        if name in (None, layer.name)
    ]


def _grouped(subjects: Iterable[Subject], key: Callable[[Subject], Any]) -> dict[Any, list[Subject]]:
    groups: dict[Any, list[Subject]] = defaultdict(list)
    for subject in subjects:
        groups[key(subject)].append(subject)
    return groups
