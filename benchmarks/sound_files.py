"""The sound files that `benchmarks.mutations` breaks, as far as no command writes them."""

import json
from typing import Any

CONFIG: dict[str, Any] = {
    "dataset": "digits",
    "train_samples": 60,
    "test_samples": 40,
    "clients": 4,
    "partition": "iid",
    "hidden": [4],
    "algorithm": "feddc",
    "hyper": {"alpha": 0.1},
    "man": True,
    "zeta": 0.1,
    "rounds": 3,
    "participation": 0.5,
    "sampling": "bernoulli",
    "local_epochs": 1,
    "checkpoint_every": 2,
    "eval_every": 1,
    "seed": 3,
}

GRID: dict[str, Any] = {
    "title": "small",
    "target_accuracy": 0.05,
    "common": {**{k: v for k, v in CONFIG.items() if k not in ("algorithm", "hyper", "man", "seed", "partition")}},
    "axes": {"algorithms": ["fedsam"], "man": [False, True], "partitions": ["iid"], "seeds": [0]},
    "sensitivity": {"zetas": [0.05]},
    "measure": {"samples": 20, "trace_tol": 0.5, "density_depth": 4, "density_probes": 2, "surface_points": 3},
}


VERDICT: dict[str, Any] = {
    "contrast": "with MAN",
    "group": json.dumps({"dataset": "digits", "algorithm": "fedavg", "partition": "dirichlet", "delta": 0.3}),
    "claim": {"quantity": "top eigenvalue", "direction": "falls", "ratio": True},
    "comparisons": [{"setting": "0.5", "pairs": 5, "effect": 0.5, "low": 0.4, "high": 0.7, "answer": "supported"}],
    "answer": "supported",
}
"""One claim of study.json."""
