"""`flatlab.flatness`: what `flatlab trace --flatness` computes."""

from typing import Any

from analysis.losses import Loss
from flatlab.interface.subject import Model, measure_model
from flatlab.measuring.flatness import FlatnessResult, flatness_settings, measure_flatness, read_ascent
from flatlab.measuring.trace import read_probing


def flatness(
    model: Model,
    loss: Loss | str | None = None,
    data: Any = None,
    *,
    tol: float = 0.02,
    max_probes: int = 400,
    worst_case: str | None = None,
    radius: float | None = None,
    ascent_steps: int | None = None,
    batch: int | None = None,
    normalise_logits: bool = False,
    samples: int | None = None,
    full: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
) -> FlatnessResult:
    """Measure flatness in every way there is, raw and invariant to rescaling, as `flatlab trace --flatness`.

    `worst_case` "linf" or "l2" adds the adaptive sharpness of Andriushchenko et al. (2023): the rise of the loss that
    `ascent_steps` (20) of ascent find where the parameters' changes, as shares of their sizes, have a norm of at most
    `radius` (0.001, 0.5), mean over batches of `batch` (128) samples; a lower bound. `tol` and `max_probes` are those
    of `trace`, the others those of `eigs`.

    >>> import flatlab
    >>> report = flatlab.flatness("runs/a", samples=60, max_probes=20, worst_case="l2", batch=30)
    >>> report.worst_case.value > 0, tuple(report.worst_case.values.shape), report.report.adaptive_sharpness > 0
    (True, (2,), True)
    """
    probing, ascent = (
        read_probing(tol, max_probes),
        read_ascent(worst_case, radius, ascent_steps, batch, normalise_logits),
    )
    asked = {"samples": samples, "full": full, "dtype": dtype, "device": device}
    return measure_model(
        model,
        loss,
        data,
        asked,
        lambda subject, tell: measure_flatness(subject.problem, probing, tell, ascent),
        flatness_settings(probing, ascent),
    )
