"""`flatlab.local_global`: what `flatlab clients` computes."""

from flatlab.interface.subject import Model, measure_model
from flatlab.measuring.eigs import read_search
from flatlab.measuring.local_global import LocalGlobalResult, local_settings, measure_local_global
from flatlab.measuring.trace import read_probing


def local_global(
    checkpoint: Model,
    *,
    top_k: int = 1,
    tol: float = 1e-3,
    max_iter: int = 1000,
    trace_tol: float = 0.05,
    samples: int | None = None,
    full: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
) -> LocalGlobalResult:
    """Measure the clients' and the global loss at the clients' own models and at the global one.

    `checkpoint` is a clients-ROUND.pt, which `train(keep_clients=[ROUND])` writes; the other arguments are those of
    `eigs` and of `trace`. The global loss is of `samples` training samples, a client's of all that it has. Raises
    `UsageError` for a checkpoint without clients' models.

    >>> import flatlab
    >>> fields = {"clients": 6, "rounds": 1, "keep_clients": [1], "progress": False}
    >>> _ = flatlab.train(**fields, out="runs/kept")
    >>> report = flatlab.local_global("runs/kept/clients-0001.pt", samples=200)
    >>> sorted(report.clients), sorted(report.means()["eigenvalue"])[0]
    (['2', '4', '5'], 'discrepancy')
    """
    search, probing = read_search(top_k, "none", "lanczos", "flatlab", tol, max_iter), read_probing(trace_tol, None)
    asked = {"samples": samples, "full": full, "dtype": dtype, "device": device, "kept": True}
    return measure_model(
        checkpoint,
        None,
        None,
        asked,
        lambda subject, tell: measure_local_global(subject, search, probing, tell),
        local_settings(search, probing),
    )
