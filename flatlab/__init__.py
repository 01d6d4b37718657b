"""Train federated models with and without MAN, and measure how flat they are.

    run = flatlab.train(algorithm="feddyn", man=True, out="runs/a")
    report = flatlab.eigs(run, top_k=5)

The names below come with what they need when they are first used: `import flatlab` does not import torch.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from flatlab.version import __version__ as __version__

if TYPE_CHECKING:
    import analysis as analysis
    import figures as figures
    from flatlab.interface.flatness import flatness as flatness
    from flatlab.interface.loaded import load as load
    from flatlab.interface.local_global import local_global as local_global
    from flatlab.interface.measures import batch_eigs as batch_eigs
    from flatlab.interface.measures import client_eigs as client_eigs
    from flatlab.interface.measures import density as density
    from flatlab.interface.measures import eigs as eigs
    from flatlab.interface.measures import surface as surface
    from flatlab.interface.measures import trace as trace
    from flatlab.interface.measures import verify as verify
    from flatlab.interface.run import train as train
    from flatlab.measuring.eigenvectors import load_vectors as load_vectors

_MEASURES = ("eigs", "client_eigs", "batch_eigs", "trace", "density", "surface", "verify")
_HOMES = {
    "train": "flatlab.interface.run",
    "load": "flatlab.interface.loaded",
    "flatness": "flatlab.interface.flatness",
    "load_vectors": "flatlab.measuring.eigenvectors",
    "local_global": "flatlab.interface.local_global",
    **dict.fromkeys(_MEASURES, "flatlab.interface.measures"),
}
"""Public functions, and the modules that define them."""

__all__ = ["analysis", "figures", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in ("analysis", "figures"):
        found: Any = import_module(name)
        for module in iter_modules(found.__path__):
            import_module(f"{name}.{module.name}")
    elif name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'flatlab' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
