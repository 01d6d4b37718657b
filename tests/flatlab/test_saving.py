"""Saves are written beside the training: of one round, whatever is trained meanwhile, and told of where they fail."""

import threading
from collections.abc import Callable, ItemsView, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.rounds import Run, train
from flatlab.federated.saving import Saves
from flatlab.federated.state import ClientState, Place
from flatlab.federated.world import World
from flatlab.files import WriteError
from flatlab.runs.folder import RunFolder


def held(run: Run) -> list[Tensor]:
    """All that a run holds between rounds."""
    own = run.clients.read(range(run.world.config.clients))
    models = [run.server.w, run.server.selected, *run.server.vectors.values(), *own.values()]
    return [x.clone() for x in models + ([] if run.server.all is None else [run.server.all])]


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_save_is_of_its_round_whatever_is_trained_meanwhile(
    algorithm: str, place: Place, toy_world: Callable[..., World], tmp_path: Path
) -> None:
    world = toy_world(algorithm=algorithm, participation=0.7, rounds=8, hyper={})
    run = Run(world, tmp_path, place)
    with SequentialEngine(world) as engine:
        for _ in range(2):
            for _ in range(2):
                run.advance(engine)
            run.begin_save()
            saved, then = run.server.round, held(run)
            run.advance(engine)
            run.advance(engine)
            run.saves.end()
            again = Run(world, tmp_path, place)
            again.resume()
            assert again.server.round == saved
            for one, other in zip(held(again), then, strict=True):
                assert torch.equal(one, other)


class Waiting(dict[str, Tensor]):
    """Files that cannot be written before `go`."""

    def __init__(self, files: Mapping[str, Tensor]) -> None:
        super().__init__(files)
        self.go = threading.Event()

    def items(self) -> ItemsView[str, Tensor]:  # type: ignore[override]
        self.go.wait(60)
        return super().items()


def test_nobody_waits_for_a_save_but_the_next(tmp_path: Path) -> None:
    clients = ClientState(tmp_path / "clients", {"h": torch.zeros(3)})
    saves = Saves(RunFolder(tmp_path), clients)
    clients.write([4], {"h": torch.ones(1, 3)}, 1)
    files = Waiting(clients.take_changes(1))
    saves.begin(1, files, {"clients": {}})
    clients.write([4], {"h": torch.full((1, 3), 2.0)}, 2)
    saves.end_if_written()
    assert saves.round == 0
    assert not list(tmp_path.rglob("*.pt"))
    files.go.set()
    assert any(thread.name.startswith("save") for thread in threading.enumerate())
    saves.leave()
    assert not any(thread.name.startswith("save") for thread in threading.enumerate())
    assert saves.round == 0
    saves.end_if_written()
    assert saves.round == 1
    assert torch.load(tmp_path / "clients" / "4-1.pt", weights_only=True).tolist() == [[1.0, 1.0, 1.0]]
    assert clients.read([4])["h"].tolist() == [[2.0, 2.0, 2.0]]


def test_a_save_that_fails_ends_the_run_and_the_one_before_stays(
    toy_world: Callable[..., World], tmp_path: Path
) -> None:
    world = toy_world(algorithm="feddyn", rounds=12)
    run = Run(world, tmp_path)

    def blocked(record: object) -> None:  # the next file of a client has the name of a folder
        if run.server.round == 3:
            run.saves.end()
            for k in range(world.config.clients):
                for t in range(4, 13):
                    (tmp_path / "clients" / f"{k}-{t}.pt").mkdir()

    with SequentialEngine(world) as engine, pytest.raises(WriteError, match=r"clients/.-4\.pt cannot be written"):
        train(run, engine, blocked, save_every=0)
    again = Run(world, tmp_path)
    again.resume()
    assert again.server.round == 3


def test_vectors_on_the_disk_are_those_of_the_save_and_the_newest(
    toy_world: Callable[..., World], tmp_path: Path
) -> None:
    world = toy_world(algorithm="scaffold", participation=1.0, rounds=8)

    def kept() -> set[str]:
        return {file.name for file in (tmp_path / "clients").glob("*.pt")}

    run = Run(world, tmp_path, "disk")
    run.begin()
    clients = range(world.config.clients)
    with SequentialEngine(world) as engine:
        for _ in range(2):
            run.advance(engine)
        run.save()
        assert kept() == {f"{k}-2.pt" for k in clients}
        for _ in range(3):
            run.advance(engine)
        assert kept() == {f"{k}-{t}.pt" for k in clients for t in (2, 5)}  # and not of rounds 3 and 4
        again = Run(world, tmp_path, "disk")  # the process was killed
        again.resume()
        seen = []
        train(again, engine, lambda record: seen.append(kept()), save_every=1e9)
    assert seen[0] == {f"{k}-{t}.pt" for k in clients for t in (2, 3)}
    assert kept() == {f"{k}-8.pt" for k in clients}
