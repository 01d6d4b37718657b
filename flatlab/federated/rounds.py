"""The round loop: sample clients, train them, combine, record; from the start or from where a run was cut off."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from figures.saved import check_record, read_records
from flatlab.errors import FlatlabError, UsageError
from flatlab.federated.algorithms.base import Round
from flatlab.federated.config import RunConfig, write_config
from flatlab.federated.engine.base import Engine, Evaluation, RoundInputs, RoundOutputs
from flatlab.federated.parameters import flatten, state_of
from flatlab.federated.state import ClientState, Place
from flatlab.federated.streams import stream
from flatlab.federated.world import World
from flatlab.files import atomic_write, remove_unfinished, write_text
from flatlab.runs.checkpoint import Checkpoint, provenance, read_plain, save_checkpoint
from flatlab.runs.contents import require_keys, require_plain, require_round, require_tensor, require_vector

SAVE_SECONDS = 20.0
"""Default time between two saves of the whole state: what a crash costs, in work; it never costs a right number."""

EVALUATION_SHARE = 0.05
"""Largest share of a round's work that evaluation takes where `eval_every` is 0."""

MOST_DRAWN = 10**7
"""Draws, rounds times clients, that are made beforehand to learn how many clients may ever be needed at once."""

RESUME_FORMAT = "flatlab resume file"
RESUME_VERSION = 1

Record = dict[str, Any]
"""One line of metrics.jsonl."""

Probe = Callable[[Tensor, Tensor | None], tuple[Record, Tensor]]
"""Measures the server model w (P,): (w, what it returned last time) -> (what to record, where to start next time)."""


@dataclass
class ServerState:
    """What the server holds after `round` rounds."""

    round: int
    w: Tensor  # (P,)
    vectors: dict[str, Tensor]  # name: (P,), the algorithm's
    all: Tensor  # (P,), mean over all clients of each one's last model
    selected: Tensor  # (P,), mean over the newest round's participants
    evaluated: Record = field(default_factory=dict)  # newest record with an evaluation
    probed: Tensor | None = None  # what the probe starts from


def sample_clients(config: RunConfig, t: int) -> list[int]:
    """The participants of round t, ascending: a share of exactly max(1, round(p N)), or each client with chance p.

    The Bernoulli draw is repeated while it is empty.
    """
    generator = stream(config.seed, "sampling", t)
    if config.sampling == "fixed":
        count = max(1, round(config.participation * config.clients))
        return sorted(torch.randperm(config.clients, generator=generator)[:count].tolist())
    while True:
        chosen = (torch.rand(config.clients, generator=generator) < config.participation).nonzero().flatten().tolist()
        if chosen:
            return chosen


def most_participants(config: RunConfig) -> int:
    """The largest number of participants that any round of the run has, or more where counting them all takes long."""
    if config.sampling == "fixed":
        return len(sample_clients(config, 0))
    if config.rounds * config.clients > MOST_DRAWN:
        return config.clients
    return max(len(sample_clients(config, t)) for t in range(config.rounds))


def evaluation_interval(world: World) -> int:
    """Rounds between evaluations: `eval_every`, or the fewest that keep evaluation within its share of the work.

    Work is counted in forward passes of one image; forward and backward together are three.
    """
    config, rules = world.config, world.config.rules
    if config.eval_every:
        return config.eval_every
    passes = 3 * (2 if rules.ascent is not None else 1)
    training = passes * config.local_epochs * config.participation * len(world.data.train.labels)
    evaluation = (3 if rules.server_differs else 2) * len(world.data.test.labels)
    return ceil(evaluation / (EVALUATION_SHARE * training))


@contextmanager
def run_folder(folder: Path) -> Iterator[None]:
    """Hold `folder` for this run alone; raises `UsageError` if another run writes to it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"Another run is writing to {folder}; wait for it, or choose another folder with --out."
        ) from error
    try:
        yield
    finally:
        lock.release()


class Run:
    """A run in its folder: server and clients' state, and what is written as it goes."""

    def __init__(self, world: World, folder: Path, place: Place = "memory") -> None:
        self.world, self.folder = world, folder
        rules, size = world.config.rules, world.layout.size
        w = flatten(dict(world.new_model().named_parameters()), world.layout)
        zeros = torch.zeros(size, dtype=world.dtype)
        self.server = ServerState(0, w, dict.fromkeys(rules.server, zeros), all=w, selected=w)
        self.clients = ClientState(folder / "clients", {**dict.fromkeys(rules.own, zeros), "last model": w}, place)
        self.saved_at = time.monotonic()

    def begin(self) -> None:
        """Prepare the folder of a new run."""
        write_config(self.folder / "config.toml", self.world.config)
        write_text(self.folder / "metrics.jsonl", "")

    def resume(self) -> None:
        """Go back to the newest saved round, and drop the metrics of later ones."""
        remove_unfinished(self.folder)
        path = self.folder / "resume.pt"
        if not path.exists():
            return self.begin()
        saved = require_keys(read_plain(path, RESUME_FORMAT, RESUME_VERSION), ("server", "clients"), path)
        self.server = self._server_state(saved["server"], path)
        self.clients.restore(require_keys(saved["clients"], (), path, "clients"))
        kept = [line for line in read_records(self.folder / "metrics.jsonl") if line["round"] <= self.server.round]
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def _server_state(self, saved: object, path: Path) -> ServerState:
        """What the file at `path` holds of the server, of this run's shapes; raises `UsageError`."""
        rules, size, dtype = self.world.config.rules, self.world.layout.size, self.world.dtype
        plain = require_keys(saved, ("round", "w", "vectors", "all", "selected", "evaluated", "probed"), path, "server")
        vectors = require_keys(plain["vectors"], rules.server, path, "server.vectors")
        round_ = require_round(plain["round"], self.world.config.rounds, path, "server.round")
        require_plain(require_keys(plain["evaluated"], (), path, "server.evaluated"), path, "server.evaluated")
        if plain["evaluated"] or round_ == self.world.config.rounds:
            check_record(plain["evaluated"], f"{path}, server.evaluated", evaluated=True)
        probed = plain["probed"]
        if probed is not None:
            shape = tuple(require_tensor(probed, path, "server.probed").shape)
            probed = require_vector(probed, (size, *shape[1:]), dtype, path, "server.probed")
        return ServerState(
            round=round_,
            w=require_vector(plain["w"], (size,), dtype, path, "server.w"),
            vectors={
                name: require_vector(vectors[name], (size,), dtype, path, f"server.vectors.{name}")
                for name in rules.server
            },
            all=require_vector(plain["all"], (size,), dtype, path, "server.all"),
            selected=require_vector(plain["selected"], (size,), dtype, path, "server.selected"),
            evaluated=plain["evaluated"],
            probed=probed,
        )

    def save(self) -> None:
        """Bring the whole state to the disk; `resume` then starts after the newest completed round."""
        files = self.clients.save(self.server.round)
        plain = {"format": RESUME_FORMAT, "version": RESUME_VERSION, "server": vars(self.server), "clients": files}
        with atomic_write(self.folder / "resume.pt") as file:
            torch.save(plain, file)
        self.clients.forget_others()
        self.saved_at = time.monotonic()

    def advance(self, engine: Engine) -> RoundOutputs:
        """Train one round and combine it; raises `FlatlabError` if a client's loss or model is not finite."""
        world, server, t = self.world, self.server, self.server.round
        rules = world.config.rules
        ids = sample_clients(world.config, t)
        before = self.clients.read(ids)
        own = {name: before[name] for name in rules.own}
        try:
            outputs = engine.run(RoundInputs(t, ids, server.w, own, server.vectors))
        except KeyboardInterrupt:
            self.save()
            raise
        _check_finite(t, ids, outputs)
        round_ = Round(
            w=server.w,
            theta=outputs.theta,
            samples=world.samples[ids],
            wt=world.wt[ids],
            before=own,
            after=outputs.after,
            server=server.vectors,
            hyper=world.config.hyperparameters,
            N=world.config.clients,
        )
        w, vectors = rules.combine(round_)
        weights = world.samples if rules.weighted else torch.ones_like(world.samples)
        moved = (weights[ids] * (outputs.theta - before["last model"])).sum(0)
        self.server = ServerState(
            round=t + 1,
            w=w,
            vectors=vectors,
            all=server.all + moved / weights.sum(),
            selected=(weights[ids] * outputs.theta).sum(0) / weights[ids].sum(),
            evaluated=server.evaluated,
            probed=server.probed,
        )
        self.clients.write(ids, {**outputs.after, "last model": outputs.theta}, t + 1)
        return outputs

    def models(self) -> dict[str, Tensor]:
        """The models that the algorithm defines after this round, by name, each (P,)."""
        models = {"server": self.server.w, "all": self.server.all}
        if self.world.config.rules.server_differs:
            models["selected"] = self.server.selected
        return models

    @property
    def reported(self) -> str:
        """Which of `models` the run reports; "selected" is the server's where they are the same."""
        report = self.world.config.report
        return report if report in self.models() else "server"

    def checkpoint(self, path: Path) -> None:
        """Write the checkpoint of the newest round."""
        model, layout = self.world.new_model(), self.world.layout
        states = {name: state_of(model, vector, layout) for name, vector in self.models().items()}
        state_dict = states.pop(self.reported)
        save_checkpoint(
            path,
            Checkpoint(self.world.config, self.server.round, state_dict, states, self.server.evaluated, provenance()),
        )

    def record(self, record: Record) -> None:
        """Append one line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")


def train(
    run: Run,
    engine: Engine,
    on_round: Callable[[Record], None],
    save_every: float = SAVE_SECONDS,
    probe: Probe | None = None,
    probe_every: int = 1,
) -> Path:
    """Carry `run` to its last round and return the path of its final checkpoint.

    `on_round` gets the record of each completed round; `probe` measures the server model every `probe_every` rounds
    and at the end, under "curvature" of the record. The whole state is saved at checkpoints and whenever a round
    ends `save_every` seconds or more after the last save. Raises `FlatlabError` on divergence; what was saved stays.
    """
    config = run.world.config
    interval = evaluation_interval(run.world)
    final = run.folder / "final.pt"
    while run.server.round < config.rounds:
        began = time.monotonic()
        eta = config.lr * config.lr_decay**run.server.round
        ids = sample_clients(config, run.server.round)
        outputs = run.advance(engine)
        trained = time.monotonic()
        done = run.server.round
        last = done == config.rounds
        record = _record(run.world, done, eta, ids, outputs, trained - began)
        if last or done % interval == 0:
            record |= _evaluate(run, engine)
            record["evaluation_seconds"] = time.monotonic() - trained
            run.server.evaluated = record
        if probe and (last or done % probe_every == 0):
            record["curvature"], run.server.probed = probe(run.server.w, run.server.probed)
        run.record(record)
        if not last and done % config.checkpoint_every == 0:
            run.checkpoint(run.folder / f"round-{done:04d}.pt")
        if last:
            run.checkpoint(final)
        if last or done % config.checkpoint_every == 0 or time.monotonic() - run.saved_at >= save_every:
            run.save()
        on_round(record)
    return final


def _record(world: World, done: int, eta: float, ids: list[int], outputs: RoundOutputs, seconds: float) -> Record:
    samples = [len(world.parts[k]) for k in ids]
    loss = sum(n * loss for n, loss in zip(samples, outputs.losses, strict=True)) / sum(samples)
    return {
        "round": done,
        "participants": ids,
        "lr": eta,
        "train_loss": loss,
        "images": outputs.images,
        "seconds": seconds,
        "images_per_second": outputs.images / seconds,
    }


def _evaluate(run: Run, engine: Engine) -> Record:
    models = run.models()
    results: dict[str, Evaluation] = dict(zip(models, engine.evaluate(list(models.values())), strict=True))
    headline = results[run.reported]
    return {
        "test_accuracy": headline.accuracy,
        "test_loss": headline.loss,
        "activation_norm": sum(headline.activation_norms),
        "models": {name: asdict(result) for name, result in results.items()},
    }


def _check_finite(t: int, ids: list[int], outputs: RoundOutputs) -> None:
    for k, loss, theta in zip(ids, outputs.losses, outputs.theta, strict=True):
        if not isfinite(loss) or not theta.isfinite().all():
            raise FlatlabError(
                f"Training diverged in round {t + 1} at client {k} (its loss is {loss:.4g}); the last good state is "
                "kept. Lower the learning rate (--lr), or the coefficient of MAN or of the algorithm."
            )
