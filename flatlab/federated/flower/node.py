"""A node: trains its clients with an engine of its own, and keeps their vectors, one file for each round that set them.

A message says after which round each client's vectors must date, so that a server that was cut off and goes on from an
earlier round finds the vectors of that round, and one whose rounds this node does not have is refused. A file goes once
the server's folder holds a later round that replaces it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatlab.errors import SAID, FlatlabError, UsageError, exit_code, first_line
from flatlab.federated.config import RunConfig, make_config
from flatlab.federated.engine import process
from flatlab.federated.engine.base import Engine, Means, RoundInputs
from flatlab.federated.flower.messages import pack, unpack
from flatlab.federated.flower.share import Share
from flatlab.federated.own_code import require_same_code
from flatlab.federated.parameters import flatten
from flatlab.federated.state import ClientState
from flatlab.federated.world import World
from flatlab.files import writing
from flatlab.functions import require_named
from flatlab.runs.fingerprint import fingerprint


@dataclass(frozen=True)
class Opened:
    """The run that the newest message was of."""

    key: str  # of its configuration
    world: World
    engine: Engine
    vectors: ClientState


class Node:
    """Answers the server's messages; `folder` keeps vectors, `model` is a function of the user's that may run here."""

    def __init__(self, share: Share, folder: Path, workers: int = 1, model: str | None = None) -> None:
        self.share, self.folder, self.workers, self.model = share, folder, workers, model
        self.opened: Opened | None = None
        self.stack = ExitStack()

    def answer(self, message: bytes) -> bytes:
        """The reply to one message; an error is a reply too, and the server ends with its sentence."""
        try:
            plain, tensors = unpack(message)
            return self._train(plain, tensors) if plain.get("do") == "train" else self._present()
        except SAID as error:
            said, code = str(error), exit_code(error)
        except Exception as error:  # whatever a user's model raises; the server must learn of it
            said, code = f"The round failed with {first_line(error)}.", FlatlabError.exit_code
        self._close()  # a worker may have died: the next message finds others
        return pack({"error": said, "code": code})

    def serve(self, socket: Path) -> None:
        """Answer whoever connects to the Unix socket `socket`, one after the other, until the process is ended."""
        socket.unlink(missing_ok=True)  # of a node that was killed
        with Listener(str(socket), "AF_UNIX", backlog=16) as listener:
            while True:
                try:
                    with listener.accept() as connection:
                        connection.send_bytes(self.answer(connection.recv_bytes()))
                except (EOFError, OSError):  # the one who asked is gone; the server asks again
                    continue

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    def _close(self) -> None:
        self.stack.close()
        self.opened = None

    def _present(self) -> bytes:
        return pack({"name": self.share.name, "split": self.share.split, "clients": self.share.clients})

    def _train(self, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
        opened = self._open(make_config(plain["config"], "the server's message"))
        remedy = f"Give {self.share.name} the server's file, and start it anew."
        own_code = plain["own_code"], opened.world.own_code
        require_same_code(opened.world.config, *own_code, "the server combines", remedy)
        t, ids, dated = plain["t"], plain["ids"], plain["dated"]
        strangers = sorted(set(ids) - set(self.share.clients))
        if strangers:
            raise UsageError(f"{self.share.name} has no client {strangers[0]}.")
        rules, vectors = opened.world.config.rules, opened.vectors
        own = self._read(vectors, ids, dated)
        server = {name: tensors[f"server.{name}"] for name in rules.server}
        outputs = opened.engine.run(RoundInputs(t, ids, tensors["w"], own, server))
        vectors.write(ids, outputs.after, t + 1)
        _forget(vectors.folder, plain["saved"])
        back = {"theta": outputs.theta}
        back |= {f"before.{name}": own[name] for name in plain["before"]}
        back |= {f"after.{name}": outputs.after[name] for name in plain["after"]}
        return pack({"losses": outputs.losses, "images": outputs.images}, back)

    def _open(self, config: RunConfig) -> Opened:
        """The run of this configuration; another one is closed for it."""
        key = fingerprint(config).config
        if self.opened is None or self.opened.key != key:
            require_named(config.model, self.model, "The server's run")
            self._close()
            world = self.share.world(config)
            engine = process.open_engine(world, Means(self.workers, torch.device("cpu"), len(self.share.clients)))
            own, _ = world.initial(flatten(dict(world.new_model().named_parameters()), world.layout))
            _forget_unfinished(self.folder / f"{key}-{self.share.split}", self.share.clients)
            vectors = ClientState(self.folder / f"{key}-{self.share.split}", own, "disk")
            self.opened = Opened(key, world, self.stack.enter_context(engine), vectors)
        return self.opened

    def _read(self, vectors: ClientState, ids: Sequence[int], dated: Sequence[int]) -> dict[str, Tensor]:
        """The clients' vectors as they were after the rounds `dated`, 0 for a client that never took part."""
        files = {k: f"{k}-{date}.pt" for k, date in zip(ids, dated, strict=True) if date}
        for k, name in files.items():
            if vectors.initial and not (vectors.folder / name).exists():
                raise UsageError(
                    f"{self.share.name} does not have the vectors of client {k} after round {name[:-3].split('-')[1]} "
                    f"in {vectors.folder}: bring that folder back, or start again in another --out."
                )
        vectors.restore(files)
        return vectors.read(ids)


def _forget_unfinished(folder: Path, clients: Iterable[int]) -> None:
    """Delete what a node that was killed left half written; another one's clients may lie here too."""
    own = {f"{k}" for k in clients}
    for file in folder.glob(".*.part"):
        if file.name[1:].partition("-")[0] in own:
            file.unlink(missing_ok=True)


def _forget(folder: Path, saved: int) -> None:
    """Delete what no run that goes on from round `saved`, or a later one, can ask for."""
    rounds: dict[int, list[int]] = {}
    for file in folder.glob("*.pt"):
        if re.fullmatch(r"[0-9]+-[0-9]+\.pt", file.name):
            k, date = map(int, file.stem.split("-"))
            rounds.setdefault(k, []).append(date)
    for k, dates in rounds.items():
        newest = max((date for date in dates if date <= saved), default=0)
        for date in dates:
            if date < newest:
                with writing(folder / f"{k}-{date}.pt"):
                    (folder / f"{k}-{date}.pt").unlink(missing_ok=True)
