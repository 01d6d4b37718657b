"""Rounds on nodes that hold their clients' samples and vectors, here without Flower between: every bit is the same."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatlab.errors import FlatlabError, UsageError
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.engine.base import Means
from flatlab.federated.engine.flower import FlowerEngine
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.flower import dispatch
from flatlab.federated.flower.dispatch import Dispatch
from flatlab.federated.flower.link import Reply
from flatlab.federated.flower.messages import pack, unpack
from flatlab.federated.flower.needs import needs_of
from flatlab.federated.flower.node import Node
from flatlab.federated.flower.share import load_share, make_shares, save_share, save_shares, split_digest
from flatlab.federated.rounds import Run
from flatlab.federated.world import World
from flatlab.tell import Tell, silent
from tests.command_line import flatlab

MakeWorld = Callable[..., World]
GONE = "the node is gone"


class Wire:
    """What a Link does, between nodes of this process; `deaths` names the messages, by their count, that kill a node.

    A node that dies has done its work, or has not, and is back under another number.
    """

    def __init__(self, nodes: Sequence[Node], deaths: Sequence[int] = ()) -> None:
        self.there = dict(enumerate(nodes))
        self.deaths, self.count, self.replies = set(deaths), 0, dict[str, Reply]()

    def nodes(self) -> list[int]:
        return list(self.there)

    def push(self, messages: Sequence[tuple[int, bytes]], group: str) -> list[str]:
        ids = []
        for node, payload in messages:
            self.count += 1
            identity = str(self.count)
            answer = self.there[node].answer(payload) if self.count % 2 or self.count not in self.deaths else b""
            if self.count in self.deaths:
                self.there[self.count + 100] = self.there.pop(node)
                self.replies[identity] = Reply(identity, None, GONE)
            else:
                self.replies[identity] = Reply(identity, answer)
            ids.append(identity)
        return ids

    def pull(self, ids: Sequence[str]) -> list[Reply]:
        return [self.replies.pop(identity) for identity in ids if identity in self.replies]


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.0)


def engine_on(
    world: World, folder: Path, nodes: int = 2, deaths: Sequence[int] = (), told: list[str] | None = None
) -> FlowerEngine:
    engine = FlowerEngine(world, Means(1, torch.device("cpu"), 6))
    wire: Any = Wire([Node(share, folder / share.name) for share in make_shares(world, nodes)], deaths)
    tell: Tell = silent if told is None else told.append
    engine.dispatch = Dispatch(wire, split_digest(world), 0.5, tell, lambda: None)
    return engine


def states(run: Run, engine: Any, rounds: int) -> list[torch.Tensor]:
    history = []
    for _ in range(rounds):
        run.advance(engine)
        history.append(torch.cat([run.server.w, *(v.flatten() for v in run.server.vectors.values())]))
    return history


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_gives_the_same_bits_on_nodes_that_die(name: str, toy_world: MakeWorld, tmp_path: Path) -> None:
    world = toy_world(algorithm=name, man=True, rounds=5, report="all", dtype="float32")
    with SequentialEngine(world) as engine:
        expected = states(Run(world, tmp_path / "here"), engine, 5)
    told: list[str] = []
    run = Run(world, tmp_path / "there", at_nodes=True)
    with SequentialEngine(world):  # one thread, as a node has it
        found = states(run, engine_on(world, tmp_path / "nodes", 3, (5, 8, 9, 12), told), 5)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    assert len([line for line in told if GONE in line]) >= 2
    assert not set(run.clients.initial) & set(world.config.rules.own)


def test_a_server_that_goes_on_from_an_earlier_round_finds_the_vectors_of_that_round(
    toy_world: MakeWorld, tmp_path: Path
) -> None:
    world = toy_world(algorithm="scaffold", rounds=6)
    with SequentialEngine(world) as engine:
        expected = states(Run(world, tmp_path / "here"), engine, 6)
        run = Run(world, tmp_path / "there", at_nodes=True)
        states(run, engine_on(world, tmp_path / "nodes"), 2)
        run.save()
        states(run, engine_on(world, tmp_path / "nodes"), 3)  # and the server is killed
        again = Run(world, tmp_path / "there", at_nodes=True)
        again.resume()
        assert again.server.round == 2
        found = states(again, engine_on(world, tmp_path / "nodes"), 4)
    assert torch.equal(found[-1], expected[-1])


def test_vectors_go_once_the_server_has_saved_a_later_round(toy_world: MakeWorld, tmp_path: Path) -> None:
    world = toy_world(algorithm="scaffold", rounds=6, participation=1.0)
    run = Run(world, tmp_path / "there", at_nodes=True)
    engine = engine_on(world, tmp_path / "nodes", 1)

    def kept() -> set[int]:
        return {int(file.stem.split("-")[1]) for file in (tmp_path / "nodes").rglob("0-*.pt")}

    states(run, engine, 3)
    assert kept() == {1, 2, 3}  # nothing is saved yet: a run that goes on begins anew
    run.save()
    states(run, engine, 1)
    assert kept() == {3, 4}


def test_a_node_that_lost_its_vectors_is_refused(toy_world: MakeWorld, tmp_path: Path) -> None:
    world = toy_world(algorithm="feddyn", rounds=6, participation=1.0)
    run = Run(world, tmp_path / "there", at_nodes=True)
    engine = engine_on(world, tmp_path / "nodes")
    states(run, engine, 2)
    for file in (tmp_path / "nodes").rglob("3-2.pt"):
        file.unlink()
    with pytest.raises(UsageError, match="node-1 does not have the vectors of client 3 after round 2"):
        run.advance(engine)
    assert run.server.round == 2


def test_a_client_that_no_node_has_ends_the_run_after_a_while(toy_world: MakeWorld, tmp_path: Path) -> None:
    world = toy_world(participation=1.0)
    engine = engine_on(world, tmp_path / "nodes")
    wire: Any = engine.dispatch.link
    del wire.there[1]
    run = Run(world, tmp_path / "there", at_nodes=True)
    with pytest.raises(FlatlabError, match=r"round 1 no node had clients 1, 3, 5 for 0.5 s \(.*there: node-0\)"):
        run.advance(engine)


def test_a_round_ends_with_its_last_answer(
    toy_world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, engine = Run(toy_world(), tmp_path / "there", at_nodes=True), engine_on(toy_world(), tmp_path / "nodes")
    run.advance(engine)  # in which the nodes say who they are
    waited: list[float] = []
    monkeypatch.setattr("flatlab.federated.flower.dispatch.time.sleep", waited.append)
    run.advance(engine)  # whose answers are there at once
    assert waited == []


def test_shares_of_another_split_are_refused(toy_world: MakeWorld, tmp_path: Path) -> None:
    world, other = toy_world(), toy_world(sizes=(5, 3, 8, 4, 11, 7))
    engine = engine_on(world, tmp_path / "nodes")
    engine.dispatch.split = split_digest(other)
    with pytest.raises(UsageError, match="node-0 holds a share of other data or of another split"):
        Run(world, tmp_path / "there", at_nodes=True).advance(engine)


def test_a_model_that_only_the_server_names_does_not_run(toy_world: MakeWorld, tmp_path: Path) -> None:
    world = toy_world()
    node = Node(make_shares(world, 2)[0], tmp_path)
    config = world.config.model_copy(update={"model": "os:getcwd"}).plain()
    plain, _ = unpack(node.answer(pack({"do": "train", "config": config})))
    assert plain["code"] == 2
    assert "--model os:getcwd" in plain["error"]


def test_a_run_is_not_gone_on_with_where_its_vectors_are_not(toy_world: MakeWorld, tmp_path: Path) -> None:
    world = toy_world(algorithm="scaffold")
    with SequentialEngine(world) as engine:
        run = Run(world, tmp_path / "here")
        states(run, engine, 2)
        run.save()
    with pytest.raises(UsageError, match="in this folder, and not on a federation's nodes: go on with another"):
        Run(world, tmp_path / "here", at_nodes=True).resume()
    run = Run(world, tmp_path / "there", at_nodes=True)
    states(run, engine_on(world, tmp_path / "nodes"), 2)
    run.save()
    with pytest.raises(UsageError, match="nodes of a Flower federation: go on with --engine flower"):
        Run(world, tmp_path / "there").resume()


@pytest.mark.parametrize("at_nodes", [False, True])
def test_fedavg_goes_on_with_any_engine(at_nodes: bool, toy_world: MakeWorld, tmp_path: Path) -> None:
    world = toy_world()
    with SequentialEngine(world) as engine:
        run = Run(world, tmp_path, at_nodes=at_nodes)
        states(run, engine, 2)
        run.save()
    Run(world, tmp_path, at_nodes=not at_nodes).resume()


def test_a_share_holds_its_clients_samples_and_no_others(toy_world: MakeWorld, tmp_path: Path) -> None:
    world = toy_world()
    shares = [load_share(path) for path in save_shares(tmp_path, world, 4)]
    assert [share.clients for share in shares] == [(0, 4), (1, 5), (2,), (3,)]
    for share in shares:
        assert len(share.images) == len(share.labels) == sum(len(world.parts[k]) for k in share.clients)
        seen = share.world(world.config)
        assert torch.equal(seen.wt, world.wt)
        assert seen.steps == world.steps
        for k in share.clients:
            assert torch.equal(seen.data.train.images[seen.parts[k]], world.data.train.images[world.parts[k]])
            assert torch.equal(seen.data.train.labels[seen.parts[k]], world.data.train.labels[world.parts[k]])
    with pytest.raises(UsageError, match="7 nodes are more than the run's 6 clients"):
        make_shares(world, 7)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clients", (9,)),
        ("clients", ()),
        ("clients", "01"),
        ("sizes", (3, 5, 8, 4, 11, 8)),
        ("labels", torch.zeros(3)),
        ("classes", 1),
        ("classes", "x"),
        ("mean", (None,)),
        ("name", 3),
        ("images", [1]),
        ("format", "x"),
        ("version", 99),
    ],
)
def test_a_damaged_share_is_one_sentence(field: str, value: object, toy_world: MakeWorld, tmp_path: Path) -> None:
    save_share(tmp_path / "it.pt", make_shares(toy_world(), 2)[1])
    plain = torch.load(tmp_path / "it.pt", weights_only=True)
    torch.save({**plain, field: value}, tmp_path / "it.pt")
    with pytest.raises(UsageError, match=r"it\.pt"):
        load_share(tmp_path / "it.pt")


@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_are_refused(content: bytes) -> None:
    with pytest.raises(FlatlabError, match="not one of flatlab's"):
        unpack(content)


def test_a_node_answers_nonsense_with_a_sentence(toy_world: MakeWorld, tmp_path: Path) -> None:
    world = toy_world()
    node = Node(make_shares(world, 2)[0], tmp_path)
    ask = {"do": "train", "config": world.config.plain(), "own_code": {}, "t": 0, "ids": [1], "dated": [0], "saved": 0}
    for message in (b"", pack({**ask, "before": [], "after": []}), pack({**ask, "ids": "x"}), pack({"do": "train"})):
        assert unpack(node.answer(message))[0]["error"].endswith(".")


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("fedavg", (), ()),
        ("scaffold", ("c",), ("c",)),
        ("feddc", ("h", "c"), ("h", "c")),
        ("fedmoswa", (), ("c",)),
    ],
)
def test_only_what_the_server_reads_leaves_a_node(
    name: str, before: tuple[str, ...], after: tuple[str, ...], toy_world: MakeWorld
) -> None:
    needs = needs_of(toy_world(algorithm=name))
    assert (needs.before, needs.after) == (before, after)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("node", "it.pt"), "needs the SuperLink's address"),
        (("node", "it.pt", "--superlink", "a:1", "--root-certificates", "no.crt"), "There is no file no.crt"),
        (("train", "--superlink", "lab"), "add --engine flower"),
        (("train", "--engine", "flower", "--superlink", "lab", "--workers", "2"), "leave one out"),
        (("train", "--engine", "flower", "--device", "cuda"), "leave --device out"),
        (("train", "--clients", "3", "--save-shares", "shares", "--workers", "4"), "4 nodes are more than"),
    ],
)
def test_what_cannot_be_is_one_sentence(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = flatlab(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
