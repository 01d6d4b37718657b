"""A run's folder: which run it holds, how far that is, and everything that is written there as it goes.

    config.toml      written as the first round ends: a start that fails leaves a folder that is free for the next
    metrics.jsonl    one line per round
    round-0100.pt    checkpoints; final.pt is the last, and where it is of this run, the run is finished
    clients-0100.pt  a checkpoint with the models of that round's clients, where they are kept
    resume.pt        server state, names of the files in clients/, and the length of metrics.jsonl at that moment
    run.log          when what happened, for a run that nobody watches
    .lock            held by the process that writes

Every file is complete before a file that counts on it is renamed into place, and on the disk before (fsync).
"""

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from flatlab.errors import UsageError, shown
from flatlab.federated.config import RunConfig, make_config
from flatlab.federated.config_file import read_config, write_config
from flatlab.federated.own_algorithm import short_name
from flatlab.federated.own_code import require_same_code
from flatlab.federated.partition.names import partition_name
from flatlab.federated.spelling import in_words
from flatlab.federated.world import OwnCode
from flatlab.files import appending, atomic_write, remove_unfinished, writing
from flatlab.runs.checkpoint import Checkpoint, Head, head_of, load_checkpoint, read_plain, save_checkpoint
from flatlab.runs.contents import damaged, require_keys, require_numbers, require_text
from flatlab.runs.fingerprint import differences, fingerprint, owners_source, settled
from flatlab.runs.lock import HANDOVER, held, is_held
from flatlab.runs.metrics import Metrics, Record

RESUME_FORMAT = "flatlab resume file"
RESUME_VERSION = 1

ADVICE = "leave these options out to go on with it by --resume, or choose another folder with --out"


class RunFolder:
    """The folder `path`, which need not exist, and the one run in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = Metrics(path / "metrics.jsonl")
        self.begun = False  # whether this object has begun or resumed the run

    @property
    def final(self) -> Path:
        """The checkpoint of the last round."""
        return self.path / "final.pt"

    @property
    def earlier(self) -> list[Path]:
        """The checkpoints of the rounds before the last that were saved, by round."""
        return by_round(self.path.glob("round-*.pt"))

    def kept_clients(self, round_: int) -> Path:
        """The checkpoint with the models of that round's clients."""
        return self.path / f"clients-{round_:04d}.pt"

    @property
    def former(self) -> Path:
        """What was finished here before the run began anew."""
        return self.path / "former"

    @property
    def resume_file(self) -> Path:
        """What `save` writes."""
        return self.path / "resume.pt"

    @contextmanager
    def locked(self, patience: float = HANDOVER) -> Iterator[None]:
        """Hold the folder for this process alone; raises `BusyError` where another has it, for `patience` seconds.

        A folder that the block leaves empty was made for nothing, and goes.
        """
        with held(self.path, patience):
            yield

    def is_busy(self) -> bool:
        """Whether another process holds the folder, which is only read: it may lie where nothing can be written."""
        return is_held(self.path)

    def config(self) -> RunConfig | None:
        """The configuration of the run that is here; None where there is none, or none of whose rounds ever ended."""
        path = self.path / "config.toml"
        if path.exists() and not self._came_to_nothing():
            return make_config(read_config(path), str(path))
        return read_head(self.final).config if self.final.exists() else None

    def _came_to_nothing(self) -> bool:
        metrics = self.metrics.path
        saved = self.final.exists() or self.resume_file.exists()
        return metrics.exists() and metrics.stat().st_size == 0 and not saved

    def refusal(self, wanted: RunConfig, asker: str = "asked for", advice: str = ADVICE) -> str:
        """Say in which fields the run that is here is not the one `wanted`; empty where it is, or there is none."""
        wanted = settled(wanted)
        configs = [self.config(), read_head(self.final).config if self.final.exists() else None]
        for found in configs:
            differing = differences(settled(found), wanted) if found else []
            if differing:
                fields = ", ".join(f"{d.field} ({_word(d.found)}; {asker} {_word(d.wanted)})" for d in differing)
                return f"{self.path} holds a run with another {fields}: {advice}."
        return ""

    def require(self, wanted: RunConfig) -> None:
        """Raise `UsageError`, with every field that differs, if the run that is here is not the one `wanted`."""
        refusal = self.refusal(wanted)
        if refusal:
            raise UsageError(refusal)

    def finished(self, wanted: RunConfig) -> Head | None:
        """What the final checkpoint says of the run `wanted`, but for its tensors; None where it is not there."""
        if not self.final.exists() or self.refusal(wanted):
            return None
        checkpoint = read_head(self.final)
        return checkpoint if checkpoint.round >= checkpoint.config.rounds else None

    def begin(self, config: RunConfig) -> None:
        """Prepare the folder of a new run."""
        write_config(self.path / "config.toml", config)
        if self.metrics.path.exists() and self.metrics.path.stat().st_size:
            self.set_aside(self.metrics.path)
        self.metrics.clear()
        self.begun = True

    def forget(self) -> None:
        """Take away what the run would go on from, or be finished by, so that it begins anew."""
        self.set_aside(self.final)
        self.resume_file.unlink(missing_ok=True)

    def set_aside(self, path: Path) -> None:
        """Move a file of a former training, if it is here, to where it stays until this one has its last checkpoint."""
        aside = self.former / path.name
        if path.exists() and aside.exists():  # what is there was finished, and this was cut off since
            path.unlink()
        elif path.exists():
            with writing(path):
                self.former.mkdir(exist_ok=True)
                path.replace(aside)
            self.log(f"{path.name} of the former training is in {self.former.name}/ until this one has its last round")

    def resume(self, config: RunConfig, data: str, own_code: OwnCode) -> dict[str, Any] | None:
        """Return what `save` wrote last, its tables yet to be checked; None where the run starts anew.

        Raises `UsageError` if the folder or the saved state is of another run, or one of other data than those of the
        digest `data`, or of a model or algorithm of the user's that has changed since.
        """
        remove_unfinished(self.path)
        self.require(config)
        path = self.resume_file
        if not path.exists():
            return None
        saved = require_keys(read_plain(path, RESUME_FORMAT, RESUME_VERSION), ("server", "clients"), path)
        kept = require_keys(saved.get("fingerprint", {}), (), path, "fingerprint")
        of = require_text(kept.get("config", ""), path, "fingerprint.config")
        if of and of != fingerprint(config).config:  # config.toml was changed, or taken away, since
            raise UsageError(
                f"{path} holds the state of a run with another configuration than the one asked for: bring back the "
                "config.toml beside it or the options of that run, or start a new run in another --out."
            )
        self.require_data(config, require_text(kept.get("data", ""), path, "fingerprint.data"), data)
        self.require_code(config, require_numbers(saved.get("own_code", {}), path, "own_code"), own_code)
        self.begun = True
        return saved

    def require_data(self, config: RunConfig, kept: str, data: str) -> None:
        """Raise `UsageError` if the digest `data` is not the one that the run kept (empty: older, unknown)."""
        if not fingerprint(config, kept).agrees(fingerprint(config, data)):
            owners = owners_source(config)
            raise UsageError(
                f"The data set {config.dataset} is not the one on which the run in {self.path} was begun: its images "
                f"or labels{owners and f', or the {owners},'} have changed. Bring them back, or start a new run in "
                "another --out."
            )

    def require_code(self, config: RunConfig, kept: OwnCode, now: OwnCode) -> None:
        """Raise `UsageError` where a model or algorithm of the user's is not the one that the run kept."""
        require_same_code(config, kept, now, f"the run in {self.path} was begun")

    def cut_metrics(self, completed: int, saved: Mapping[str, Any]) -> None:
        """Drop the metrics of rounds after `completed`, the round of what `resume` returned."""
        length = saved.get("metrics_bytes")
        if length is not None and (type(length) is not int or length < 0):
            raise damaged(self.resume_file, "metrics_bytes", f"is {shown(length)} and no length")
        self.metrics.cut(completed, length)

    def record(self, record: Record, config: RunConfig) -> None:
        """Append one line to metrics.jsonl; with the first, the run begins."""
        if not self.begun:
            self.begin(config)
        self.metrics.append(record)

    def resume_content(self, config: RunConfig, data: str, state: Mapping[str, Any]) -> dict[str, Any]:
        """What `save` writes of `state`, plain data and tensors; every line of metrics is on the disk before."""
        if not self.begun:
            self.begin(config)
        return {
            "format": RESUME_FORMAT,
            "version": RESUME_VERSION,
            "fingerprint": fingerprint(config, data).plain(),
            "metrics_bytes": self.metrics.sync(),
            **state,
        }

    def save(self, content: Mapping[str, Any]) -> None:
        """Write the content from which `resume` goes on."""
        with atomic_write(self.resume_file) as file:
            torch.save(dict(content), file)

    def checkpoint(self, path: Path, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, once every line of metrics up to it is on the disk."""
        if self.metrics.path.exists():
            self.metrics.sync()
        save_checkpoint(path, checkpoint)
        if path == self.final:
            shutil.rmtree(self.former, ignore_errors=True)

    def log(self, line: str) -> None:
        """Append `line` to run.log, with the time."""
        with appending(self.path / "run.log") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode())


def by_round(paths: Iterable[Path]) -> list[Path]:
    """Sort files whose names differ in a round, of four digits or more: as text, round-10000 is before round-2000."""
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def default_folder(config: RunConfig) -> Path:
    """checkpoints/<dataset>-<algorithm>[-swa][-man][-zeta<zeta>][-<partition>]-s<seed>, without what is by default."""
    usual = RunConfig()
    words = [Path(config.dataset).name.replace(":", "-"), short_name(config.algorithm)]
    words += [f"swa{in_words(config.swa_start)}"] if config.swa_start is not None else []
    if config.man:
        words += ["man"]
        words += [f"zeta{in_words(config.zeta)}"] if config.zeta != usual.zeta else []
        words += [f"logits{in_words(config.zeta_logits)}"] if config.zeta_logits else []
    if partition_name(config) != partition_name(usual):
        words += [partition_name(config)]
    return Path("checkpoints") / "-".join([*words, f"s{config.seed}"])


def _word(value: object) -> str:
    return value if isinstance(value, str) and len(value) < 80 and value.isprintable() else shown(value)


def read_head(path: Path) -> Head:
    """Read the checkpoint at `path` without its tensors, once for as long as the file stays as it is."""
    status = path.stat()
    return _read_head_once(path.resolve(), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1024)
def _read_head_once(path: Path, time_ns: int, size: int) -> Head:
    return head_of(load_checkpoint(path, mapped=True))
