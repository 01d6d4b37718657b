"""A run carried out: begun in its folder, or gone on with where it was cut off, by the engine that is asked for."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

import torch

from flatlab.cores import available_cores
from flatlab.errors import UsageError, require_count, require_seconds, shown
from flatlab.federated.config import RunConfig
from flatlab.federated.engine import ENGINES, ON_DEVICES
from flatlab.federated.engine.base import PATIENCE, SIMULATION, Engine, Means
from flatlab.federated.footprint import MUCH, footprint
from flatlab.federated.participants import most_participants
from flatlab.federated.precision import missing_kernels
from flatlab.federated.rounds import SAVE_SECONDS, Probe, Run, train
from flatlab.federated.state import Place
from flatlab.federated.trial import tried
from flatlab.federated.world import World, make_world, resolve
from flatlab.malloc import keep_freed_memory
from flatlab.runs.fingerprint import data_digest, settled
from flatlab.runs.folder import RunFolder
from flatlab.runs.interruption import terminable
from flatlab.runs.metrics import Record
from flatlab.tell import Tell, silent
from flatlab.torch_settings import usual_settings

CHOICES = {"state": ("memory", "disk"), "engine": ("auto", *ENGINES), "device": ("auto", "cpu", "cuda")}
"""What fields of `Execution` may say."""


@dataclass(frozen=True)
class Execution:
    """Where and how a run is carried out, which changes the trained model by rounding at most. Raises `UsageError`."""

    workers: int | None = None  # processes on the CPU; None: one per core
    engine: str = "auto"
    device: str = "auto"
    state: str = "memory"
    save_every: float = SAVE_SECONDS
    track_eigs: int | None = None  # rounds between measurements of the server model's curvature
    keep_clients: tuple[int, ...] = ()  # rounds whose clients' own models are kept
    superlink: str | None = None  # connection of Flower's configuration, or SIMULATION; None: nodes on this machine
    patience: float | None = None  # seconds that a round waits for a node that is not there; None: PATIENCE

    def __post_init__(self) -> None:
        for option, allowed in CHOICES.items():
            value = getattr(self, option)
            if value not in allowed:
                raise UsageError(f"--{option} is one of {', '.join(allowed)}, not {value!r}.")
        for option, count in {"workers": self.workers, "track-eigs": self.track_eigs}.items():
            if count is not None:
                require_count(option, count)
        for round_ in self.keep_clients:
            require_count("keep-clients", round_)
        for option, seconds in {"save-every": self.save_every, "patience": self.patience}.items():
            if seconds is not None:
                require_seconds(option, seconds)
        if self.device == "cuda" and self.engine == "process":
            raise UsageError("--engine process trains on the CPU; leave --device out, or use --engine streams.")
        if self.workers is not None and self.engine in ON_DEVICES:
            raise UsageError(f"--workers is of worker processes, and --engine {self.engine} has none: leave one out.")
        if self.workers is not None and self.engine == "auto" and self.device == "cuda":
            raise UsageError("--workers is of processes, which train on the CPU: leave it or --device cuda out.")
        if self.superlink is not None and self.engine != "flower":
            raise UsageError("--superlink is a connection of Flower's; add --engine flower.")
        if self.superlink not in (None, SIMULATION) and self.workers is not None:
            raise UsageError(
                "--workers is the number of nodes on this machine, and --superlink has its own: leave one out."
            )
        if self.device == "cuda" and self.engine == "flower":
            raise UsageError("--engine flower trains on the nodes' CPUs; leave --device out.")
        if self.patience is not None and self.engine != "flower":
            raise UsageError("--patience is with nodes of Flower's; add --engine flower.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("There is no CUDA device here; leave --device out to use the CPU.")

    def require_rounds(self, config: RunConfig) -> None:
        """Raise `UsageError` where clients are to be kept of a round that the run does not have."""
        if max(self.keep_clients, default=0) > config.rounds:
            raise UsageError(f"--keep-clients {max(self.keep_clients)}: the run has only {config.rounds} rounds.")


def read_rounds(words: str | None) -> tuple[int, ...]:
    """The rounds named in "40,500"; raises `UsageError` where they are none."""
    rounds = [] if words is None else words.replace(" ", "").split(",")
    if not all(word.isdecimal() and 0 < len(word) < 10 for word in rounds):
        raise UsageError(f"--keep-clients is rounds separated by commas, as 40,500, not {shown(words)}.")
    return tuple(int(word) for word in rounds)


class Watch(Protocol):
    """Opens what shows the rounds of a run as they end."""

    def __call__(self, run: Run, /) -> AbstractContextManager[Callable[[Record], None]]:
        """Yield what takes the record of each round; `run` stands where it was cut off, or at its beginning."""


@contextmanager
def unwatched(run: Run) -> Iterator[Callable[[Record], None]]:
    """Show nothing."""
    yield lambda record: None


@usual_settings()
def carry_out(
    config: RunConfig,
    folder: Path,
    execution: Execution | None = None,
    *,
    data_root: Path | None = None,
    tell: Tell = silent,
    watch: Watch = unwatched,
    make_probe: Callable[[World, torch.device], Probe] | None = None,
) -> Record:
    """Carry out the run `config` in `folder`, or go on with it, and return its last evaluation.

    A run that is finished is left as it is. `tell` gets what there is to say before the first round. `make_probe`
    measures the model every `execution.track_eigs` rounds. SIGTERM ends a run like Ctrl-C, its state saved, with a
    `KeyboardInterrupt`. Raises `FlatlabError`, and `UsageError` where the folder holds another run.
    """
    keep_freed_memory()
    execution = execution or Execution()
    config = settled(config, data_root)
    execution.require_rounds(config)
    files = RunFolder(folder)
    files.require(config)
    with terminable():
        done = _finished(files, config, data_root, tell)
        if done is not None:
            _require_kept(files, execution, config.rounds)
            _require_tracked(files, execution, config.rounds)
            return done
        world = tried(make_world(config, data_root))
        held = footprint(config, world.layout.size)
        if held.bytes >= MUCH and execution.engine != "flower":  # there the nodes hold them
            tell(held.sentence(_place(execution)))
        with files.locked():
            return go_on(world, folder, execution, tell=tell, watch=watch, make_probe=make_probe)


def go_on(
    world: World,
    folder: Path,
    execution: Execution,
    *,
    tell: Tell = silent,
    watch: Watch = unwatched,
    make_probe: Callable[[World, torch.device], Probe] | None = None,
    anew: bool = False,
) -> Record:
    """Train from the newest saved round to the last, in a folder that the caller holds; the model has been tried.

    Raises `UsageError` where clients' models are asked for of a round that is over; the run is then begun `anew` where
    that is allowed.
    """
    run = _at_its_beginning(world, folder, execution)
    run.resume()
    if anew and _not_kept(run.files, execution, run.server.round):
        run.files.forget()
        run = _at_its_beginning(world, folder, execution)
    _require_kept(run.files, execution, run.server.round)
    if run.server.round < world.config.rounds:
        run.files.set_aside(run.files.final)
    if run.server.round:
        done = f"after round {run.server.round} of {world.config.rounds}"
        begun = f" It was begun with flatlab at {run.commits[-2]}, and this is another." if len(run.commits) > 1 else ""
        tell(f"The run in {folder} is this very one, cut off {done}: going on.{begun}")
    probe = make_probe(world, _engine(execution)[1]) if make_probe and execution.track_eigs else None
    with open_engine(world, execution, tell, folder) as engine, watch(run) as on_round:
        train(run, engine, on_round, execution.save_every, probe, execution.track_eigs or 1, execution.keep_clients)
    return run.server.evaluated


def _at_its_beginning(world: World, folder: Path, execution: Execution) -> Run:
    return Run(world, folder, _place(execution), at_nodes=execution.engine == "flower", device=_home(world, execution))


def open_engine(world: World, execution: Execution, tell: Tell = silent, folder: Path = Path()) -> Engine:
    """The engine that trains the clients of a round of the run in `folder`."""
    name, device = _engine(execution)
    if note := missing_kernels(world.config.precision, device):
        tell(note)
    means = Means(
        workers=execution.workers or available_cores(),
        device=device,
        slots=most_participants(world.config),
        folder=folder,
        tell=tell,
        superlink=execution.superlink,
        patience=PATIENCE if execution.patience is None else execution.patience,
    )
    engine: Engine = import_module(ENGINES[name]).open_engine(world, means)
    return engine


def _engine(execution: Execution) -> tuple[str, torch.device]:
    """The engine by name, and the device that it trains on; who names a number of workers means processes."""
    device = "cuda" if execution.device != "cpu" and torch.cuda.is_available() else "cpu"
    usual = "streams" if device == "cuda" and execution.workers is None else "process"
    name = usual if execution.engine == "auto" else execution.engine
    return name, torch.device(device if name in ON_DEVICES else "cpu")


def _home(world: World, execution: Execution) -> torch.device:
    """Where server and clients' vectors are between rounds: with an engine that trains on a GPU, if there is room."""
    name, device = _engine(execution)
    if device.type != "cuda" or name not in ON_DEVICES or _place(execution) == "disk":
        return torch.device("cpu")
    free, _ = torch.cuda.mem_get_info(device)
    return device if footprint(world.config, world.layout.size).bytes <= free / 4 else torch.device("cpu")


def _finished(files: RunFolder, config: RunConfig, data_root: Path | None, tell: Tell) -> Record | None:
    """The last evaluation of the run `config` where it is finished, which is said."""
    final = files.finished(config)
    if final is None:
        return None
    if final.data:
        files.require_data(config, final.data, data_digest(resolve(config, data_root)[1]))
    if final.own_code:
        files.require_code(config, final.own_code, tried(make_world(config, data_root)).own_code)
    tell(f"The run in {files.path} is this very one, and is finished.")
    return final.metrics


def _require_kept(files: RunFolder, execution: Execution, completed: int) -> None:
    """Raise `UsageError` where clients' models are asked for of one of the `completed` rounds, and were not kept."""
    for round_ in _not_kept(files, execution, completed):
        raise UsageError(
            f"The run in {files.path} was beyond round {round_} when its clients were asked for, and their models "
            "are gone: train it into another folder (--out) to keep them."
        )


def _require_tracked(files: RunFolder, execution: Execution, completed: int) -> None:
    """Raise `UsageError` where curvature along a finished run is asked for, and none was measured."""
    due = execution.track_eigs is not None and execution.track_eigs <= completed
    if due and not any("curvature" in record for record in files.metrics.read()):
        raise UsageError(
            f"The run in {files.path} was finished when its eigenvalues were asked for (--track-eigs): train it into "
            "another folder (--out) to follow them, or measure its checkpoints (flatlab eigs)."
        )


def _not_kept(files: RunFolder, execution: Execution, completed: int) -> list[int]:
    return [each for each in execution.keep_clients if each <= completed and not files.kept_clients(each).exists()]


def _place(execution: Execution) -> Place:
    return "disk" if execution.state == "disk" else "memory"
