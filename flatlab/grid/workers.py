"""The processes that cells are sent to: of this machine or of a Dask cluster, one per core or one per GPU.

A process that is pinned to a GPU sees no other: its CUDA_VISIBLE_DEVICES is set before it starts, so whatever runs in
it takes that GPU as its first and only one.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any, Literal

import joblib
from joblib.externals.loky import ProcessPoolExecutor

from flatlab.errors import UsageError

Backend = Literal["loky", "dask"]

Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""As `joblib.delayed` makes it: a function, its arguments, and those by name."""

Parallel = Callable[[Sequence[Task]], Iterator[Any]]
"""Runs tasks, and yields what each returns as it ends."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def visible_gpus(environment: Mapping[str, str], count: int) -> tuple[str, ...]:
    """The `count` GPUs that torch sees, each as CUDA_VISIBLE_DEVICES names it: by number, or GPU-... or MIG-...

    Names after the first that is none, as -1, are of no GPU that is seen.
    """
    said = environment.get("CUDA_VISIBLE_DEVICES")
    names = [word.strip() for word in said.split(",")] if said is not None else list(map(str, range(count)))
    return tuple(names[:count])


def dealt(gpus: Sequence[str], jobs: int) -> tuple[str, ...]:
    """The GPU of each of `jobs` processes, dealt round."""
    return tuple(islice(cycle(gpus), jobs))


@contextmanager
def workers(backend: Backend, jobs: int, scheduler: str | None, gpus: Sequence[str]) -> Iterator[Parallel]:
    """Yield what runs tasks in `jobs` processes, or in one for each of `gpus`, which may repeat.

    With "dask" they are those of the cluster whose scheduler has the address `scheduler`, or of one that is made here.
    Raises `UsageError` where Dask is not installed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped while some jobs")  # it had grown; another takes its place
        if backend == "dask":
            with _dask(jobs, scheduler, gpus):
                yield joblib.Parallel(n_jobs=-1, batch_size=1, return_as="generator_unordered")
        elif gpus:
            with _pinned(gpus) as parallel:
                yield parallel
        else:  # with n_jobs = 1 it would work in this process; so `pre_dispatch` limits what runs at once
            with joblib.parallel_config("loky", inner_max_num_threads=1):
                yield joblib.Parallel(
                    n_jobs=max(jobs, 2), pre_dispatch=jobs, batch_size=1, return_as="generator_unordered"
                )


@contextmanager
def _pinned(gpus: Sequence[str]) -> Iterator[Parallel]:
    pools = [ProcessPoolExecutor(1, env=_environment(gpu)) for gpu in gpus]

    def parallel(tasks: Sequence[Task]) -> Iterator[Any]:
        waiting = iter(tasks)
        at_work: dict[Future[Any], ProcessPoolExecutor] = {}

        def start(pool: ProcessPoolExecutor) -> None:
            for function, arguments, named in islice(waiting, 1):
                at_work[pool.submit(function, *arguments, **named)] = pool

        for pool in pools:
            start(pool)
        while at_work:
            for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                pool = at_work.pop(future)
                yield future.result()
                start(pool)

    try:
        yield parallel
    finally:
        for pool in pools:
            pool.shutdown(kill_workers=True)


@contextmanager
def _dask(jobs: int, scheduler: str | None, gpus: Sequence[str]) -> Iterator[None]:
    try:
        import distributed
    except ImportError as error:
        raise UsageError("--backend dask needs Dask's cluster: pip install 'flatlab[dask]'.") from error
    client: Any = distributed.Client  # without types
    if scheduler:
        with client(address=scheduler), joblib.parallel_config("dask"):
            yield
        return
    pinned = gpus or [""] * jobs
    options = {"nthreads": 1, "memory_limit": 0, "dashboard": False, "silence_logs": logging.ERROR}
    spec: Any = distributed.SpecCluster
    cluster = spec(
        {
            i: {"cls": distributed.Nanny, "options": {**options, "env": _environment(gpu)}}
            for i, gpu in enumerate(pinned)
        },
        {"cls": distributed.Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard": False}},
        silence_logs=logging.ERROR,
    )
    with cluster, client(cluster), joblib.parallel_config("dask"):
        yield


def _environment(gpu: str) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": gpu, **ONE_THREAD} if gpu else ONE_THREAD
