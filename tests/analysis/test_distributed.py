"""Two processes that hold half of the data each get the numbers of one process that holds all."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from analysis.errors import MeasurementError
from analysis.problem import make_problem
from analysis.spectrum import eigs
from tests.command_line import program

SCRIPT = """
import json, sys
import torch
from torch import distributed as dist, nn
from analysis.lanczos import lanczos
from analysis.operators import empirical_fisher, fisher, gauss_newton
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
        "fisher": lanczos(fisher(problem), tol=1e-8).values.tolist(),
        "empirical_fisher": lanczos(empirical_fisher(problem), tol=1e-8).values.tolist(),
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


UNLIKE = """
import json
import sys
import torch
from torch import distributed as dist, nn
from analysis.errors import MeasurementError
from analysis.layer_blocks import LayerBlocks
from analysis.operators import hessian
from analysis.problem import make_problem

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
    def forward(self, x):
        z, late = torch.tanh(self.first(x)), (x[:, :1] > 5).to(x)
        return self.head(z + late * self.first(z) if late.any() else z)

class Changing:
    passes = 0
    def __iter__(self):
        self.passes += 1
        yield (x if rank == 0 or self.passes < 4 else x + 1)[:3], y[:3]

def refused(make):
    try:
        make()
    except MeasurementError as error:
        return str(error)
    return "not refused"

def weighted(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 5.0, 1.0]).double())

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model, x, y = Model().double(), torch.randn(6, 4).double(), torch.randint(3, (6,))
x[5, 0] = 9.0
own = slice(0, 2) if rank == 0 else slice(2, 6)
problem = make_problem(model, "cross_entropy", (x[own], y[own]), distributed=True, chunk_size=None if rank else 1)
blocks = LayerBlocks(problem)
eye = torch.eye(20).double()
changing = hessian(make_problem(model, "cross_entropy", Changing(), distributed=True, memory=1))
changing(torch.ones(35).double())
found = {
    "cut": sorted(blocks._cut),
    "sizes": [problem.chunk_size, problem.cached_samples],
    "block": blocks({"first": eye})["first"].tolist(),
    "data": refused(lambda: changing(torch.ones(35).double())),
    "nan": refused(lambda: make_problem(
        model, "cross_entropy", (x if rank == 0 else x * torch.nan, y), distributed=True)),
    "weights": refused(lambda: make_problem(model, weighted, (x[rank::2], y.new_tensor([rank] * 3)), distributed=True)),
}
open(f"{sys.argv[1]}/{rank}.json", "w").write(json.dumps(found))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.long
def test_ranks_decide_and_fail_alike(tmp_path: Path) -> None:
    """On one rank only: a layer that cannot be cut, another chunk size, data that change, nan; and a class each."""
    script = tmp_path / "unlike.py"
    script.write_text(UNLIKE)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = program(*launcher, script, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert lines[0]["cut"] == lines[1]["cut"] == ["head"]
    assert lines[0]["sizes"] == lines[1]["sizes"]
    assert lines[0]["sizes"][0] == 1
    assert lines[0]["block"] == lines[1]["block"]
    assert lines[0]["data"] == f"On rank 1: {lines[1]['data']}"
    assert "data changed" in lines[1]["data"]
    assert lines[0]["nan"] == f"On rank 1: {lines[1]['nan']}"
    assert "finite" in lines[1]["nan"]
    assert all("a loss that weighs its samples must return" in line["weights"] for line in lines)  # one class on each


def result_of(command: list[str]) -> Any:
    done = program(*command)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "RESULT" in line]
    return json.loads(line.split("RESULT", 1)[1])


@pytest.mark.long
def test_two_gloo_processes_agree_with_one(tmp_path: Path) -> None:
    script = tmp_path / "shares.py"
    script.write_text(SCRIPT)
    alone = result_of([sys.executable, str(script), "alone"])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    together = result_of([*launcher, str(script)])
    assert together["samples"] == alone["samples"] == 11
    for key in ("loss", "values", "gauss_newton", "fisher", "empirical_fisher"):
        assert together[key] == pytest.approx(alone[key], rel=1e-9)
    for name, values in alone["layers"].items():
        assert together["layers"][name] == pytest.approx(values, rel=1e-9)


def test_a_process_alone_cannot_be_distributed() -> None:
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    with pytest.raises(MeasurementError, match="torchrun"):
        eigs(make_problem(nn.Linear(2, 2), "cross_entropy", (x, y), distributed=True))
