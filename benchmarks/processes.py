"""`python -m benchmarks processes[.SAMPLES]`: how much faster two processes of torchrun find a top eigenvalue than one.

The CIFAR CNN of the other tables, on its 512 images or on the first SAMPLES; every process has one thread and its share
of the images. What is timed is the search, from when all processes stand ready until the last has it; one and two
processes take turns, in processes of their own each time, so that other work on the machine meets both alike.
"""

import json
import subprocess
import sys
import time
from statistics import median
from typing import Any

import torch
from torch import distributed as dist

from analysis.lanczos import lanczos
from analysis.operators import hessian
from analysis.problem import make_problem
from benchmarks.curvature_peers import make_subject
from benchmarks.exact_searches import TOL
from flatlab.malloc import keep_freed_memory

TURNS = 5
COUNTS = (1, 2)


def main(part: str | None = None) -> None:
    """Print the table; as a process of torchrun, which `part` as JSON says, search."""
    if part and part.startswith("{"):
        return _search(**json.loads(part))
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in COUNTS}
    for _ in range(TURNS):
        for count in COUNTS:
            found[count].append(_started(count, int(part) if part else None))
    alone = median(run["seconds"] for run in found[1])
    print("| processes | seconds, median (least to most) | times as fast | products | top eigenvalue |")
    print("|---|---|---|---|---|")
    for count, runs in found.items():
        seconds, one = [run["seconds"] for run in runs], runs[0]
        print(
            f"| {count} | {median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | "
            f"{alone / median(seconds):.2f} | {one['products']} | {one['top']:.6f} |"
        )


def _started(count: int, samples: int | None) -> dict[str, Any]:
    """What `count` processes found."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count))
    words = (*launch, "-m", "benchmarks", f"processes.{json.dumps({'samples': samples})}")
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _search(samples: int | None) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    subject = make_subject()
    share = slice(rank, samples, ranks)
    data = (subject.x[share], subject.y[share])
    problem = make_problem(subject.model, "cross_entropy", data, distributed=True)
    dist.barrier()
    began = time.perf_counter()
    pairs = lanczos(hessian(problem), tol=TOL)
    dist.barrier()
    if rank == 0:
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "products": pairs.products, "top": float(pairs.values[0])}))
    dist.destroy_process_group()
