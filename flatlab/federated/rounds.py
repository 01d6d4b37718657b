"""The round loop: sample clients, train them, combine, record; from the start or from where a run was cut off."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from flatlab.errors import UsageError, shown
from flatlab.federated.algorithms.base import Round
from flatlab.federated.divergence import require_finite_clients, require_finite_server
from flatlab.federated.engine.base import Engine, RoundInputs, RoundOutputs
from flatlab.federated.parameters import flatten, state_of
from flatlab.federated.participants import sample_clients
from flatlab.federated.round_record import evaluation_interval, evaluation_record, training_record
from flatlab.federated.saving import Saves
from flatlab.federated.server_calls import combine, further_models, lent, start
from flatlab.federated.state import LAST, ClientState, Place, ServerState, read_server
from flatlab.federated.world import World
from flatlab.files import WriteError
from flatlab.runs.checkpoint import Checkpoint, provenance
from flatlab.runs.contents import damaged, require_keys, require_texts
from flatlab.runs.fingerprint import data_digest
from flatlab.runs.folder import RunFolder
from flatlab.runs.interruption import stop_if_asked, undisturbed
from flatlab.runs.metrics import Record

SAVE_SECONDS = 60.0
"""Default time between two saves of the whole state: what a crash costs, in work; it never costs a right number."""

Probe = Callable[[Tensor, Tensor | None], tuple[Record, Tensor]]
"""Measures the server model w (P,): (w, what it returned last time) -> (what to record, where to start next time)."""


@dataclass(frozen=True)
class Step:
    """One round, trained and combined, before anything of it is kept."""

    ids: list[int]  # the participants
    outputs: RoundOutputs
    server: ServerState  # after the round


class Run:
    """A run in its folder: server and clients' state, and what is written as it goes.

    Where the clients' own vectors stay with their nodes (`at_nodes`), the folder holds none of them. All else is kept,
    and combined, on `device`.
    """

    def __init__(
        self,
        world: World,
        folder: Path,
        place: Place = "memory",
        *,
        at_nodes: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.world, self.folder, self.files = world, folder, RunFolder(folder)
        w = flatten(dict(world.new_model().named_parameters()), world.layout).to(device)
        own, server = world.initial(w)
        every = world.config.reports_all
        self.server = ServerState(0, w, server, all=w if every else None, selected=w)
        self.at_nodes = at_nodes and bool(own)
        held = {} if self.at_nodes else own
        self.clients = ClientState(folder / "clients", held | ({LAST: w} if every else {}), place)
        self.saves = Saves(self.files, self.clients)
        self.commits = [provenance()["commit"]]  # of flatlab, with which the run was begun and gone on with

    @cached_property
    def data(self) -> str:
        """Digest of the data."""
        return data_digest(self.world.data)

    def begin(self) -> None:
        """Prepare the folder of a new run; otherwise the end of the first round does."""
        self.files.begin(self.world.config)

    def resume(self) -> None:
        """Go back to the newest saved round, and drop the metrics of later ones.

        Raises `UsageError` if the folder holds another run (see `RunFolder.resume`), or if the clients' vectors are
        elsewhere.
        """
        saved = self.files.resume(self.world.config, self.data, self.world.own_code)
        if saved is None:
            return
        path = self.files.resume_file
        server = read_server(saved["server"], path, self.server, self.world.config.rounds)
        at_nodes = saved.get("at_nodes", False)
        if type(at_nodes) is not bool:
            raise damaged(path, "at_nodes", f"is {shown(at_nodes)} and neither true nor false")
        self._require_vectors(at_nodes)
        self.clients.restore(require_keys(saved["clients"], (), path, "clients"))
        commits = require_texts(saved.get("commits", []), path, "commits")
        self.commits = [*commits, *(now for now in self.commits if commits[-1:] != [now])]
        self.files.cut_metrics(server.round, saved)
        self.server = server.to(self.server.w.device)
        self.saves.round = server.round

    def _require_vectors(self, at_nodes: bool) -> None:
        """Raise `UsageError` unless the saved clients' vectors, on the nodes or here, are where this run looks."""
        if at_nodes == self.at_nodes:
            return
        where = "on the nodes of a Flower federation" if at_nodes else "in this folder, and not on a federation's nodes"
        engine = "--engine flower" if at_nodes else "another --engine"
        raise UsageError(
            f"The run in {self.folder} keeps its clients' vectors {where}: go on with {engine}, or start anew in "
            "another --out."
        )

    def save(self) -> None:
        """Bring the whole state to the disk; `resume` then starts after the newest completed round."""
        self.begin_save()
        self.saves.end()

    def begin_save(self) -> None:
        """Begin to bring the whole state to the disk, beside the next rounds.

        The save before is waited for. Raises `WriteError` where that could not be written.
        """
        self.saves.end()
        round_, files = self.server.round, self.clients.take_changes(self.server.round)
        state = {
            "server": vars(self.server.to("cpu")),
            "clients": dict(self.clients.files),
            "at_nodes": self.at_nodes,
            "own_code": dict(self.world.own_code),
            "commits": self.commits,
        }
        self.saves.begin(round_, files, self.files.resume_content(self.world.config, self.data, state))

    def advance(self, engine: Engine) -> RoundOutputs:
        """Train one round, combine it and keep it; raises `FlatlabError` as `step`."""
        step = self.step(engine)
        self.keep(step)
        return step.outputs

    def step(self, engine: Engine) -> Step:
        """Train one round and combine it, and change nothing.

        Raises `FlatlabError` if a loss, a model or a vector of a client or of the server is not finite, and for what
        goes wrong in a user's own algorithm.
        """
        world, server, t = self.world, self.server, self.server.round
        rules, hyper = world.config.rules, world.config.hyperparameters
        ids = sample_clients(world.config, t)
        before = self.clients.read(ids)
        own = {name: before[name] for name in rules.own if name in before}
        begin, sent = start(world.config, t, server.w, server.vectors), lent(world.config, server.vectors)
        outputs = engine.run(RoundInputs(t, ids, begin, own, sent, self.saves.round)).to(server.w.device)
        require_finite_clients(t, ids, outputs)
        samples, wt = world.samples.to(server.w.device), world.wt.to(server.w.device)
        round_ = Round(
            w=server.w,
            theta=outputs.theta,
            samples=samples[ids],
            wt=wt[ids],
            before=own or outputs.before,
            after=outputs.after,
            server=server.vectors,
            hyper=hyper,
            N=world.config.clients,
            t=t,
            eta=world.config.learning_rate(t),
            K=world.steps,
        )
        w, vectors = combine(world.config, round_)
        weights = samples if rules.weighted else torch.ones_like(samples)
        every = server.all
        if every is not None:
            every = every + (weights[ids] * (outputs.theta - before[LAST])).sum(0) / weights.sum()
        after = ServerState(
            round=t + 1,
            w=w,
            vectors=vectors,
            all=every,
            selected=(weights[ids] * outputs.theta).sum(0) / weights[ids].sum(),
            evaluated=server.evaluated,
            probed=server.probed,
        )
        require_finite_server(t, {"selected": after.selected, **self.models(after)}, vectors)
        return Step(ids, outputs, after)

    def keep(self, step: Step) -> None:
        """Make the state after `step` that of the run."""
        self.clients.write(step.ids, {**step.outputs.after, LAST: step.outputs.theta}, step.server.round)
        self.server = step.server

    def models(self, server: ServerState | None = None) -> dict[str, Tensor]:
        """The models that the algorithm defines after this round, or as `server` has them, by name, each (P,).

        "all" is among them where the run reports it: every client's last model is kept for it.
        """
        server = server or self.server
        config = self.world.config
        models = {"server": server.w} | ({} if server.all is None else {"all": server.all})
        if config.rules.server_differs:
            models["selected"] = server.selected
        return models | further_models(config, server.round, server.w, server.vectors)

    @property
    def reported(self) -> str:
        """Which of `models` the run reports; "selected" is the server's where they are the same."""
        report = self.world.config.report
        return report if report in self.models() else "server"

    def checkpoint(self, path: Path) -> None:
        """Write the checkpoint of the newest round."""
        self.files.checkpoint(path, self._checkpoint(self.server))

    def keep_models(self, step: Step) -> None:
        """Write a checkpoint of the round `step` that holds its participants' own models too."""
        model, layout = self.world.new_model(), self.world.layout
        own = {str(k): state_of(model, row, layout) for k, row in zip(step.ids, step.outputs.theta.cpu(), strict=True)}
        checkpoint = replace(self._checkpoint(step.server), clients=own)
        self.files.checkpoint(self.files.kept_clients(step.server.round), checkpoint)

    def _checkpoint(self, server: ServerState) -> Checkpoint:
        model, layout = self.world.new_model(), self.world.layout
        states = {name: state_of(model, vector.cpu(), layout) for name, vector in self.models(server).items()}
        reported, config = states.pop(self.reported), self.world.config
        metrics = server.evaluated if server.evaluated.get("round") == server.round else {}
        own = {role: list(numbers) for role, numbers in self.world.own_code.items()}
        versions = provenance() | {"commit": ", ".join(self.commits)}
        return Checkpoint(config, server.round, reported, states, metrics, versions, self.data, own_code=own)

    def record(self, record: Record) -> None:
        """Append one line to metrics.jsonl."""
        self.files.record(record, self.world.config)


def train(
    run: Run,
    engine: Engine,
    on_round: Callable[[Record], None],
    save_every: float = SAVE_SECONDS,
    probe: Probe | None = None,
    probe_every: int = 1,
    keep_clients: Collection[int] = (),
) -> Path:
    """Carry `run` to its last round and return the path of its final checkpoint.

    `on_round` gets the record of each completed round, which says how good its models are where that is due and where
    they are written; `probe` measures the server model every `probe_every` rounds and at the end, under "curvature" of
    the record; of rounds `keep_clients` the clients' own models are written. The whole state is saved at checkpoints,
    whenever a round ends `save_every` seconds or more after the last save, and when the run is interrupted or cannot
    go on, for whatever reason. Raises `FlatlabError` on divergence, and `WriteError` where the folder takes nothing
    more: what was saved stays.
    """
    config = run.world.config
    interval, whole = evaluation_interval(run.world), True
    try:
        run.clients.forget_others(run.clients.files)  # what rounds after the save that this goes on from left
        while run.server.round < config.rounds:
            stop_if_asked()
            began = time.monotonic()
            step = run.step(engine)
            done = step.server.round
            last = done == config.rounds
            record = training_record(run.world, done, step.ids, step.outputs, time.monotonic() - began)
            if last or done % interval == 0 or done % config.checkpoint_every == 0 or done in keep_clients:
                began = time.monotonic()
                record |= evaluation_record(run.models(step.server), run.reported, engine)
                record["evaluation_seconds"] = time.monotonic() - began
                step.server.evaluated = record
            if probe and (last or done % probe_every == 0):
                record["curvature"], step.server.probed = probe(step.server.w, step.server.probed)
            with undisturbed():
                if done in keep_clients:
                    run.keep_models(step)
                whole = False  # state and metrics may not be of the same round
                _write(run, step, record, save_every)
                whole = True
            on_round(record)
        run.saves.end()
    except WriteError:  # the disk takes nothing more
        raise
    except (KeyboardInterrupt, SystemExit, Exception):  # of a model or tracker too: the state is the last whole round's
        with undisturbed():
            run.saves.end()
            if whole and run.server.round > run.saves.round:
                run.save()
        raise
    finally:
        with undisturbed():
            run.saves.leave()
    if run.files.finished(config) is None:  # deleted or replaced, and the state of the last round is still here
        run.checkpoint(run.files.final)
    return run.files.final


def _write(run: Run, step: Step, record: Record, save_every: float) -> None:
    """Keep `step`, and write what is due after it."""
    config = run.world.config
    run.keep(step)
    run.record(record)
    run.saves.end_if_written()
    last = step.server.round == config.rounds
    due = step.server.round % config.checkpoint_every == 0
    if last or due:
        run.checkpoint(run.files.final if last else run.folder / f"round-{step.server.round:04d}.pt")
    if last or due or time.monotonic() - run.saves.began >= save_every:
        run.begin_save()
