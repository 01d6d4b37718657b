"""What server and clients hold between rounds; the clients' vectors in memory or on disk, safe in any crash.

Every save writes the changed clients to files of their own, `clients/<k>-<round>.pt`, before the run's `resume.pt` that
names them is renamed into place; the files of the save before are deleted only after that. A client that never took
part has no file and no memory: its vectors have their initial values.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flatlab.errors import UsageError, shown
from flatlab.files import atomic_write, writing
from flatlab.runs.checkpoint import load_tensors
from flatlab.runs.contents import require_keys, require_plain, require_round, require_tensor, require_vector
from flatlab.runs.metrics import Record, check_record

Place = Literal["memory", "disk"]

LAST = "last model"
"""The vector of a client that its newest model is, behind those of the algorithm; kept where the run reports "all"."""


@dataclass
class ServerState:
    """What the server holds after `round` rounds."""

    round: int
    w: Tensor  # (P,)
    vectors: dict[str, Tensor]  # name: (P,) or a shape of its own, the algorithm's
    all: Tensor | None  # (P,), mean over all clients of each one's last model; None where the run does not report it
    selected: Tensor  # (P,), mean over the newest round's participants
    evaluated: Record = field(default_factory=dict)  # newest record with an evaluation
    probed: Tensor | None = None  # what the probe starts from

    def to(self, device: torch.device | str) -> "ServerState":
        """The same with its tensors on `device`."""
        moved: dict[str, Any] = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, vectors={name: x.to(device) for name, x in self.vectors.items()}, **moved)


def read_server(saved: object, path: Path, like: ServerState, rounds: int) -> ServerState:
    """Return what the file at `path` says of the server, in the shapes of `like`; raises one of `errors.SAID`."""
    plain = require_keys(saved, ("round", "w", "vectors", "all", "selected", "evaluated", "probed"), path, "server")
    vectors = require_keys(plain["vectors"], tuple(like.vectors), path, "server.vectors")
    round_ = require_round(plain["round"], rounds, path, "server.round")
    evaluated = require_keys(plain["evaluated"], (), path, "server.evaluated")
    require_plain(evaluated, path, "server.evaluated")
    if evaluated or round_ == rounds:
        check_record(evaluated, f"{path}, server.evaluated")
    shape, dtype = tuple(like.w.shape), like.w.dtype
    probed = plain["probed"]
    if probed is not None:
        further = tuple(require_tensor(probed, path, "server.probed").shape)[1:]
        probed = require_vector(probed, (*shape, *further), dtype, path, "server.probed")
    return ServerState(
        round=round_,
        w=require_vector(plain["w"], shape, dtype, path, "server.w"),
        vectors={
            name: require_vector(vectors[name], tuple(first.shape), dtype, path, f"server.vectors.{name}")
            for name, first in like.vectors.items()
        },
        all=None if like.all is None else require_vector(plain["all"], shape, dtype, path, "server.all"),
        selected=require_vector(plain["selected"], shape, dtype, path, "server.selected"),
        evaluated=evaluated,
        probed=probed,
    )


class ClientState:
    """One (V, P) tensor per client that ever took part; `initial` gives every vector's value before that."""

    def __init__(self, folder: Path, initial: Mapping[str, Tensor], place: Place = "memory") -> None:
        self.folder = folder
        self.initial = dict(initial)
        self.place = place
        self.rows: dict[int, Tensor] = {}  # client: (V, P), only those in memory
        self.files: dict[int, str] = {}  # client: file that holds its newest saved rows
        self.unsaved: set[int] = set()
        self.named: set[str] = set()  # files of the newest save, and of the one that is being written

    def read(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """Return name: (C, P), the vectors of clients `ids`, fresh copies."""
        if not self.initial:
            return {}
        stacked = torch.stack([self._read(k) for k in ids])
        return {name: stacked[:, row] for row, name in enumerate(self.initial)}

    def write(self, ids: Sequence[int], vectors: Mapping[str, Tensor], t: int) -> None:
        """Replace the vectors of clients `ids` by name: (C, P) after round t."""
        if not self.initial:
            return
        stacked = torch.stack([vectors[name] for name in self.initial], dim=1)
        changed = {k: rows.clone() for k, rows in zip(ids, stacked, strict=True)}
        if self.place == "disk":
            names = {k: f"{k}-{t}.pt" for k in changed}
            self.write_files({names[k]: rows.cpu() for k, rows in changed.items()})
            replaced = {self.files[k] for k in changed if k in self.files} - self.named
            self.files |= names  # all of them or, where one cannot be written, none
            self._delete(self.folder / name for name in replaced - {*names.values()})
        else:
            self.rows |= changed
            self.unsaved |= changed.keys()

    def take_changes(self, t: int) -> dict[str, Tensor]:
        """name: (V, P), on the host, of the files that clients changed up to round t are still to be written to.

        `files` names them from here on. Later rounds leave these tensors as they are.
        """
        names = {k: f"{k}-{t}.pt" for k in sorted(self.unsaved)}
        self.files |= names
        self.unsaved.clear()
        self.named |= {*self.files.values()}
        return {name: self.rows[k].cpu() for k, name in names.items()}

    def write_files(self, files: Mapping[str, Tensor]) -> None:
        """Write what `take_changes` returned; no other method needs to wait for it."""
        for name, rows in files.items():
            with atomic_write(self.folder / name) as file:
                torch.save(rows, file)

    def restore(self, files: Mapping[Any, Any]) -> None:
        """Go back to what `save` returned; in memory, read it all.

        Raises `UsageError` where that names no client's file, or a file is not there or holds something else.
        """
        for k, name in files.items():
            if type(k) is not int or not isinstance(name, str) or not re.fullmatch(rf"{k}-[0-9]+\.pt", name):
                raise UsageError(
                    f"In {self.folder.parent / 'resume.pt'}, clients.{shown(k)} = {shown(name)} is no client's file: "
                    "the file is damaged; start again in another folder."
                )
        self.files = dict(files) if self.initial else {}
        self.named = {*self.files.values()}
        self.unsaved.clear()
        self.rows = {k: self._load(k) for k in self.files} if self.place == "memory" else {}

    def forget_others(self, saved: Mapping[int, str]) -> None:
        """Delete the files that neither the newest save names, `saved`, nor the state; once `resume.pt` is in place."""
        self.named = {*saved.values()}
        kept = {*saved.values(), *self.files.values()}
        self._delete(file for file in self.folder.glob("*.pt") if file.name not in kept)

    def _delete(self, files: Iterable[Path]) -> None:
        for file in files:
            with writing(file):
                file.unlink(missing_ok=True)

    def _read(self, k: int) -> Tensor:
        if k in self.rows:
            return self.rows[k]
        return self._load(k) if k in self.files else torch.stack(list(self.initial.values()))

    def _load(self, k: int) -> Tensor:
        path = self.folder / self.files[k]
        like = next(iter(self.initial.values()))
        saved = load_tensors(path, "a client's state", "Start again in another folder.")
        rows = require_tensor(saved, path, "")
        if LAST not in self.initial and tuple(rows.shape) == (len(self.initial) + 1, *like.shape):
            rows = rows[:-1].clone()  # earlier versions kept the last model in every run
        return require_vector(rows, (len(self.initial), *like.shape), like.dtype, path, "").to(like.device)
