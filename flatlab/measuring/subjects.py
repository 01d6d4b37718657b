"""What is measured: the loss of a checkpoint, or of a user's own model, on training samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.batches import inspect_data
from analysis.losses import Loss
from analysis.problem import Problem, make_problem
from analysis.strata import stratified_choice
from flatlab.data import ImageData
from flatlab.errors import UsageError, require_count, shown, told_in_a_sentence
from flatlab.federated.world import DTYPES, make_world
from flatlab.malloc import keep_freed_memory
from flatlab.measuring.loss_samples import choice_digest, own_share, some_of
from flatlab.measuring.own_model import USUAL_LOSS, OwnModel, open_own, require_distributions
from flatlab.measuring.ranks import spread
from flatlab.runs.checkpoint import Checkpoint, load_checkpoint, provenance, rebuild
from flatlab.runs.contents import damaged
from flatlab.runs.fingerprint import tensors_of, weights_digest

DEFAULT_SAMPLES = 2000


@dataclass(frozen=True)
class Measurement:
    """On what, and how exactly, a loss is differentiated."""

    samples: int | None = None  # class-balanced; None: of a checkpoint `most`, or all if fewer, of own data all
    dtype: str = "float32"
    device: str = "cpu"
    data_root: Path | None = None
    trusted_models: tuple[str, ...] = ()  # package.module:function of checkpoints that may run
    full: bool = False  # all training samples
    clients: str | None = None  # "all", or numbers separated by commas: only what these clients hold
    own: OwnModel | None = None
    most: int = DEFAULT_SAMPLES
    kept: bool = False  # with the models of the clients that a checkpoint keeps


@dataclass(frozen=True)
class Subject:
    """A loss at one point, and what is known of it."""

    problem: Problem
    about: Mapping[str, Any]  # as plain data: model, data, versions; begins every saved result
    available: int  # samples there are, of which the problem's are some
    clients: Mapping[str, Problem] = field(default_factory=dict)  # their own losses; the problem's is that of all
    places: NDArray[np.int64] | None = None  # of the samples in a checkpoint's training set, on all ranks, in order
    settings: Mapping[str, Any] = field(default_factory=dict)  # samples, precision and clients, as results state them
    notes: tuple[str, ...] = ()  # what the user should hear of how it was opened
    own_models: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # of clients, where they are kept


def read_measurement(
    paths: Sequence[Path],
    *,
    samples: int | None,
    full: bool,
    dtype: str,
    device: str,
    data_root: Path | None,
    models: Sequence[str],
    weights: Path | None,
    data: str | None,
    loss: str | None,
    clients: str | None = None,
) -> Measurement:
    """What the commands' options say; raises `UsageError` where they contradict one another or something is missing."""
    own = None
    if paths:
        for option, value in {"--weights": weights, "--data": data, "--loss": loss}.items():
            if value is not None:
                raise UsageError(f"{option} is for a model of your own; a checkpoint brings its own: leave one out.")
    elif data_root is not None:
        raise UsageError(
            "--data-root is for a checkpoint's data set; a model of your own brings its data: leave it out."
        )
    elif not models or data is None:
        raise UsageError(
            "Name a checkpoint of flatlab train, or measure a model of your own: --model package.module:function "
            "(or hf:NAME, timm:NAME) --data package.module:function."
        )
    elif len(models) > 1:
        raise UsageError(
            f"One model of your own is measured at a time, and --model names {len(models)}: {', '.join(models)}; "
            "keep one of them, or name the checkpoints whose models they are."
        )
    else:
        own = OwnModel(models[0], data, weights, loss)
    return Measurement(samples, dtype, usual_device(device), data_root, tuple(models), full, clients, own)


def usual_device(device: str) -> str:
    """The device named, or for "auto" a GPU where there is one."""
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def is_here(device: str) -> bool:
    """Whether it names the CPU, or a GPU that there is."""
    try:
        named = torch.device(device)
    except RuntimeError:
        return False
    return named.type == "cpu" or (named.type == "cuda" and (named.index or 0) < torch.cuda.device_count())


def check(measurement: Measurement, paths: Sequence[Path]) -> None:
    """Look at every option and file before hours are spent on the first; raises `UsageError`."""
    if measurement.dtype not in DTYPES:
        raise UsageError(f"--dtype is float32 or float64, not {measurement.dtype!r}.")
    if not is_here(measurement.device):
        raise UsageError(f"There is no device {measurement.device!r} here; leave --device out to use the CPU.")
    if measurement.samples is not None:
        require_count("samples", measurement.samples)
    if measurement.full and measurement.samples is not None:
        raise UsageError("--full takes all samples and --samples some: give one of them.")
    if measurement.clients is not None and not paths:
        raise UsageError("--clients needs a checkpoint, which says what each client holds.")
    for path in paths:
        if not load_checkpoint(path).clients and measurement.kept:
            raise without_clients(path)


def without_clients(path: object) -> UsageError:
    """What is raised for a checkpoint that clients' models are asked of."""
    return UsageError(
        f"{path} holds no clients' models: train with --keep-clients ROUND, and measure the clients-ROUND.pt that it "
        "writes."
    )


def open_checkpoint(path: Path, measurement: Measurement) -> Subject:
    """Rebuild a checkpoint's model, data and loss: the mean cross-entropy on its training samples, not augmented.

    Every class keeps its share among the samples or, where clients are named, every client. They come in random order,
    so that any stretch of them is a random mini-batch. Under torchrun each process has its share. Raises `UsageError`
    for a bad file, more samples than there are, or clients that are not.
    """
    keep_freed_memory()
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    model, data = rebuild(checkpoint, root=measurement.data_root, trusted_models=measurement.trusted_models)
    parts = _parts(checkpoint, measurement)
    chosen, available = _choice(data, parts, measurement, config.seed)
    dtype = DTYPES[measurement.dtype]
    batches = own_share(data, chosen, dtype, measurement.device)
    problem = make_problem(
        model, "cross_entropy", batches, dtype=dtype, device=measurement.device, distributed=spread(len(chosen))
    )
    clients = {}
    for name, part in parts.items():
        held = chosen[np.isin(chosen, part)]
        if len(held) == 0:
            raise UsageError(f"Client {name} holds none of the {len(chosen)} samples: ask for more, or use --full.")
        share = own_share(data, held, dtype, measurement.device)
        clients[name] = problem.on(share, distributed=spread(len(held)))
    about = _about_checkpoint(path, checkpoint, problem, choice_digest(data, chosen, parts))
    return Subject(problem, about, available, clients, chosen, _settings(problem, measurement))


def open_kept_clients(path: Path, measurement: Measurement) -> Subject:
    """Open a checkpoint with its clients' own models: the global loss, and each of these clients' on all its samples.

    Raises `UsageError` as `open_checkpoint`.
    """
    checkpoint = load_checkpoint(path)
    subject = open_checkpoint(path, measurement)
    if not checkpoint.clients:
        return subject
    world = make_world(checkpoint.config, measurement.data_root)
    shapes = {name: tuple(tensor.shape) for name, tensor in subject.problem.model.named_parameters()}
    for name, state in checkpoint.clients.items():
        if not (name.isdecimal() and int(name) < len(world.parts)):
            raise damaged(path, "clients", f"has {shown(name)}, which is no number of a client")
        for parameter, shape in shapes.items():
            if (
                parameter not in state
                or tuple(state[parameter].shape) != shape
                or not state[parameter].isfinite().all()
            ):
                raise damaged(path, f"clients.{name}.{parameter}", "is not there, or not finite, or of another shape")
    names = sorted(checkpoint.clients, key=int)
    dtype = DTYPES[measurement.dtype]
    clients = {
        name: subject.problem.on(
            own_share(world.data, world.parts[int(name)], dtype, measurement.device),
            distributed=spread(len(world.parts[int(name)])),
        )
        for name in names
    }
    own = {name: checkpoint.clients[name] for name in names}
    return replace(subject, clients=clients, own_models=own)


def open_subject(path: Path | None, measurement: Measurement) -> Subject:
    """Open the checkpoint at `path`, or without one the user's own model."""
    if path is not None:
        return (open_kept_clients if measurement.kept else open_checkpoint)(path, measurement)
    assert measurement.own is not None  # `check` saw to it
    keep_freed_memory()
    own = measurement.own
    opened = open_own(own, measurement.samples, DTYPES[measurement.dtype], measurement.device)
    about = {
        "model": own.model,
        "weights": None if own.weights is None else str(own.weights),
        "data": {"dataset": own.data, "split": None, "samples": opened.problem.samples},
        "loss_function": opened.loss,
        "parameters": weights_digest(tensors_of(opened.problem.model)),
        "versions": provenance(),
    }
    settings = _settings(opened.problem, measurement)
    return Subject(opened.problem, about, opened.available, settings=settings, notes=opened.notes)


def open_parts(
    model: nn.Module, loss: Loss | str | None, data: Any, measurement: Measurement, named: str | None = None
) -> Subject:
    """Open a model with its loss and data ((inputs, targets), or batches of these); the model is copied.

    Results call it as it is `named`, or else by its class. Without a loss it is cross-entropy, of targets that fit it.

    Raises `UsageError` for more samples than there are and for a model or loss that fails, `MeasurementError` for what
    cannot be measured.
    """
    keep_freed_memory()
    inspected, samples = inspect_data(data), measurement.samples
    if samples is not None and samples > inspected.samples:
        raise UsageError(f"The data hold {inspected.samples} samples: ask for 1 to {inspected.samples}, not {samples}.")
    batches = inspected.batches if samples is None else some_of(inspected, samples)
    if loss is None:
        require_distributions(inspected, "these data", 'loss="mse"')
        loss = USUAL_LOSS
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    with told_in_a_sentence(f"The model {named or type(model).__name__} with the loss {name} fails on these data"):
        problem = make_problem(model, loss, batches, dtype=DTYPES[measurement.dtype], device=measurement.device)
    about = {
        "model": named or type(model).__name__,
        "weights": None,
        "data": {"dataset": "own data", "split": None, "samples": problem.samples},
        "loss_function": name,
        "parameters": weights_digest(tensors_of(problem.model)),
        "versions": provenance(),
    }
    return Subject(problem, about, inspected.samples, settings=_settings(problem, measurement))


def _settings(problem: Problem, measurement: Measurement) -> dict[str, Any]:
    clients = {} if measurement.clients is None else {"clients": measurement.clients}
    return {"samples": problem.samples, "dtype": measurement.dtype, **clients}


def _choice(
    data: ImageData, parts: Mapping[str, NDArray[np.int64]], measurement: Measurement, seed: int
) -> tuple[NDArray[np.int64], int]:
    """Places of the samples in the training set, shuffled, and how many there were to choose from."""
    owner = f"{data.name} has"
    pool, groups = np.arange(len(data.train)), data.train.labels.numpy()
    if parts:
        owner = "These clients hold" if len(parts) > 1 else "This client holds"
        pool = np.concatenate(list(parts.values()))
        groups = np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])
    count = len(pool) if measurement.full else measurement.samples or min(measurement.most, len(pool))
    if count > len(pool):
        raise UsageError(f"{owner} {len(pool)} training images: ask for 1 to {len(pool)}, not {count}.")
    rng = np.random.default_rng([seed, 0])
    return rng.permutation(pool[stratified_choice(groups, count, rng)]), len(pool)


def _about_checkpoint(path: Path, checkpoint: Checkpoint, problem: Problem, choice: str) -> dict[str, Any]:
    config = checkpoint.config
    return {
        "checkpoint": str(path),
        "data": {"dataset": config.dataset, "split": "train", "samples": problem.samples, "choice": choice},
        "loss_function": "cross_entropy",
        "versions": provenance(),
        "fingerprint": checkpoint.fingerprint.plain(),
        "run": {
            "config": config.plain(),
            "round": checkpoint.round,
            "metrics": checkpoint.metrics,
            **({"own_code": dict(checkpoint.own_code)} if checkpoint.own_code else {}),
        },
    }


def _parts(checkpoint: Checkpoint, measurement: Measurement) -> dict[str, NDArray[np.int64]]:
    """The training samples of each client asked for, by its number."""
    if measurement.clients is None:
        return {}
    parts = make_world(checkpoint.config, measurement.data_root).parts
    words = measurement.clients.replace(" ", "").split(",")
    if words == ["all"]:
        words = [str(k) for k in range(len(parts))]
    for word in words:
        if not (word.isdecimal() and int(word) < len(parts)):
            raise UsageError(
                f"--clients is all, or numbers from 0 to {len(parts) - 1} separated by commas, not {word!r}."
            )
    return {str(int(word)): parts[int(word)] for word in words}
