"""What flatlab finds around it: versions, processor, devices, and where data are looked for (`flatlab doctor`)."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from flatlab.cores import available_cores
from flatlab.data.store import Place, cache_folder, known_places
from flatlab.errors import UsageError
from flatlab.federated.precision import missing_kernels
from flatlab.files import WriteError, require_writable
from flatlab.runs.checkpoint import provenance

NEEDED = ("torch", "numpy", "scipy", "pyhessian")
"""Packages that decide a number."""

EXTRAS = ("tensorboard", "wandb", "mlflow-skinny", "trackio", "distributed", "flwr", "ray", "transformers", "timm")
"""Packages that flatlab uses where they are installed."""

ENVIRONMENT = (
    "FLATLAB_DATA",
    "FLATLAB_CACHE",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "CUDA_VISIBLE_DEVICES",
)
"""Variables that decide where data come from, and what computes."""


@dataclass(frozen=True)
class Processor:
    """The processor, and what torch makes of it."""

    name: str
    cores: int  # this process may use
    all_cores: int  # there are
    threads: int  # of one operation of torch
    capability: str  # instructions that torch's own kernels use: DEFAULT, AVX2, AVX512, ...
    onednn: bool  # whether torch has oneDNN, which multiplies matrices and convolves
    instructions: Mapping[str, bool]  # that oneDNN chooses from; false: the processor has none
    bf16: bool  # whether precision = bf16 has instructions of its own, or is emulated


@dataclass(frozen=True)
class Device:
    """A GPU that torch sees."""

    name: str
    memory: int  # bytes
    capability: str  # of CUDA, as 9.0


@dataclass(frozen=True)
class Surroundings:
    """What there is, as plain data; `problems` says in a sentence each what will not work."""

    versions: Mapping[str, str]  # flatlab, its commit, python, platform, and NEEDED
    extras: Mapping[str, str | None]  # EXTRAS; None: not installed
    processor: Processor
    cuda: str | None  # version that torch is built with
    devices: tuple[Device, ...]
    environment: Mapping[str, str]  # those of ENVIRONMENT that are set
    data_root: str | None  # folder of local copies
    data: Mapping[str, Place]  # by the names that the command line takes; empty where the folder is not there
    others: tuple[str, ...]  # further folders in data_root, which --dataset takes by name
    cache: str  # folder of decoded images
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as `--json` writes it."""
        return asdict(self)


def examine(data_root: Path | None = None) -> Surroundings:
    """Look around; nothing is loaded, downloaded or written. `data_root` stands in for FLATLAB_DATA.

    >>> from flatlab.measuring.surroundings import examine
    >>> found = examine()
    >>> found.data["digits"].source, found.processor.cores > 0, "torch" in found.versions
    ('bundled', True, True)
    """
    problems = []
    named = data_root or os.environ.get("FLATLAB_DATA")
    root = Path(named) if named else None
    try:
        data = known_places(root)
    except UsageError as error:
        data, root = {}, None
        problems.append(str(error))
    try:
        require_writable(cache_folder() / "images" / "any")
    except WriteError as error:
        problems.append(
            f"Decoded images cannot be kept in {cache_folder()} ({error.reason}): make room there, or name another "
            "folder in FLATLAB_CACHE."
        )
    return Surroundings(
        versions=provenance() | {name: version(name) for name in NEEDED},
        extras={name: _version(name) for name in EXTRAS},
        processor=_processor(),
        cuda=torch.version.cuda,
        devices=_devices(),
        environment={name: os.environ[name] for name in ENVIRONMENT if os.environ.get(name)},
        data_root=str(named) if named else None,
        data=data,
        others=() if root is None else _others(root, data),
        cache=str(cache_folder()),
        problems=tuple(problems),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> Processor:
    instructions = {
        "AVX2": torch.cpu._is_avx2_supported(),
        "AVX512": torch.cpu._is_avx512_supported(),
        "AVX512-BF16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    return Processor(
        name=_processor_name(),
        cores=available_cores(),
        all_cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        onednn=torch.backends.mkldnn.is_available(),
        instructions=instructions,
        bf16=not missing_kernels("bf16", torch.device("cpu")),
    )


def _processor_name() -> str:
    """Linux names the processor in a file alone; elsewhere Python knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _devices() -> tuple[Device, ...]:
    found = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return tuple(Device(one.name, one.total_memory, f"{one.major}.{one.minor}") for one in found)


def _others(root: Path, known: Mapping[str, Place]) -> tuple[str, ...]:
    try:
        folders = [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return ()
    return tuple(sorted(set(folders) - set(known)))
