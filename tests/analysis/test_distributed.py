"""Two processes that hold half of the data each get the numbers of one process that holds all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from analysis.errors import MeasurementError
from analysis.problem import make_problem
from analysis.spectrum import eigs

SCRIPT = """
import json, sys
import torch
from torch import distributed as dist, nn
from analysis.lanczos import lanczos
from analysis.operators import gauss_newton
from analysis.problem import make_problem
from analysis.spectrum import eigs

def model_and_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)).double()
    return model, torch.randn(11, 1, 6, 6, dtype=torch.float64), torch.randint(4, (11,))

def numbers(problem):
    report = eigs(problem, 2, tol=1e-8)
    return {
        "samples": report.samples,
        "loss": report.loss,
        "values": [e.value for e in report.eigenvalues],
        "layers": {l.name: [*(e.value for e in l.eigenvalues), l.input_norm2, l.output_norm2] for l in report.layers},
        "gauss_newton": lanczos(gauss_newton(problem), tol=1e-8).values.tolist(),
    }

if __name__ == "__main__":
    model, x, y = model_and_data()
    if len(sys.argv) == 1:
        dist.init_process_group("gloo")
        share = slice(0, 4) if dist.get_rank() == 0 else slice(4, 11)
        found = numbers(make_problem(model, "cross_entropy", (x[share], y[share]), distributed=True, chunk_size=2))
        if dist.get_rank() == 1:
            print("RESULT", json.dumps(found))
        dist.destroy_process_group()
    else:
        print("RESULT", json.dumps(numbers(make_problem(model, "cross_entropy", (x, y)))))
"""


def result_of(command: list[str]) -> Any:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "RESULT" in line]
    return json.loads(line.split("RESULT", 1)[1])


def test_two_gloo_processes_agree_with_one(tmp_path: Path) -> None:
    script = tmp_path / "shares.py"
    script.write_text(SCRIPT)
    alone = result_of([sys.executable, str(script), "alone"])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    together = result_of([*launcher, str(script)])
    assert together["samples"] == alone["samples"] == 11
    for key in ("loss", "values", "gauss_newton"):
        assert together[key] == pytest.approx(alone[key], rel=1e-9)
    for name, values in alone["layers"].items():
        assert together["layers"][name] == pytest.approx(values, rel=1e-9)


def test_a_process_alone_cannot_be_distributed() -> None:
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    with pytest.raises(MeasurementError, match="torchrun"):
        eigs(make_problem(nn.Linear(2, 2), "cross_entropy", (x, y), distributed=True))
