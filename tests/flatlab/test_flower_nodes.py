"""Nodes that are not as the server takes them to be: of other code, with a worker that died; and their certificates."""

import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from flatlab.errors import FlatlabError, UsageError
from flatlab.federated import own_algorithm
from flatlab.federated.engine.base import Means
from flatlab.federated.engine.flower import FlowerEngine
from flatlab.federated.flower import dispatch
from flatlab.federated.flower.dispatch import Dispatch
from flatlab.federated.flower.messages import pack, unpack
from flatlab.federated.flower.needs import needs_of
from flatlab.federated.flower.node import Node
from flatlab.federated.flower.share import make_shares, split_digest
from flatlab.federated.rounds import Run
from flatlab.federated.trial import tried
from flatlab.federated.world import World
from flatlab.functions import let_run
from tests.flatlab.test_flower_rounds import GONE, Wire, engine_on

MakeWorld = Callable[..., World]

METHOD = """
from flatlab.federated.algorithms.base import Algorithm, weighted_mean

def keep(client, delta):
    return {"h": SCALE * delta}

def combine(round_):
    w = weighted_mean(round_)
    return (w if w.abs().max() < 1e9 else w + round_.after["h"].mean(0)), {}

ALGORITHM = Algorithm("mine", "nowhere", combine, own=("h",), keep=keep)
"""
MODEL = """
from torch import nn

def build(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ACTIVATION(), nn.Linear(5, classes))
"""
CHANGES = {
    "algorithm": (METHOD.replace("SCALE", "1.0"), METHOD.replace("SCALE", "2.0")),
    "model": (MODEL.replace("ACTIVATION", "ReLU"), MODEL.replace("ACTIVATION", "Tanh")),
}


def forget(module: str) -> None:
    """As in a process that begins."""
    sys.modules.pop(module, None)
    own_algorithm._own.cache_clear()


@pytest.mark.parametrize("role", CHANGES)
def test_a_node_with_other_code_of_the_users_is_refused(
    role: str, here: Path, toy_world: MakeWorld, tmp_path: Path
) -> None:
    """What a share holds of the samples is no other code."""
    file, module = here / f"of_{role}.py", f"of_{role}"
    name = f"{module}:{'ALGORITHM' if role == 'algorithm' else 'build'}"
    before, after = CHANGES[role]
    file.write_text(before)
    let_run(name)
    world = tried(toy_world(**{role: name}, hyper={}))
    nodes = [Node(share, tmp_path / share.name, model=name) for share in make_shares(world, 2)]
    engine = FlowerEngine(world, Means(1, torch.device("cpu"), 6))
    engine.dispatch = Dispatch(Wire(nodes), split_digest(world), 0.5, lambda line: None, lambda: None)  # type: ignore[arg-type]
    run = Run(world, tmp_path / "run", at_nodes=True)
    run.advance(engine)
    file.write_text(after)
    os.utime(file, (1, 1))
    forget(module)
    again = FlowerEngine(tried(toy_world(**{role: name}, hyper={})), Means(1, torch.device("cpu"), 6))
    again.dispatch = engine.dispatch
    with pytest.raises(UsageError, match=rf"node-0 says: The {role} .* is not the one with which the server"):
        Run(again.world, tmp_path / "other", at_nodes=True).advance(again)


def test_a_server_of_ones_own_gets_every_vector(here: Path, toy_world: MakeWorld) -> None:
    """Which it reads may depend on what it gets."""
    (here / "asks_rarely.py").write_text(CHANGES["algorithm"][0])
    let_run("asks_rarely:ALGORITHM")
    needs = needs_of(toy_world(algorithm="asks_rarely:ALGORITHM", hyper={}))
    assert needs.after == needs.before == ("h",)


def test_a_node_whose_worker_died_answers_the_next_message(toy_world: MakeWorld, tmp_path: Path) -> None:
    world = toy_world(participation=1.0)
    (share,) = make_shares(world, 1)
    engine = FlowerEngine(world, Means(1, torch.device("cpu"), 6))
    with Node(share, tmp_path / "node", workers=2) as node:
        engine.dispatch = Dispatch(Wire([node]), split_digest(world), 0.5, lambda line: None, lambda: None)  # type: ignore[arg-type]
        run = Run(world, tmp_path / "run", at_nodes=True)
        run.advance(engine)
        assert node.opened is not None
        for process in node.opened.engine.pool._processes.values():  # type: ignore[attr-defined]
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(FlatlabError, match="worker process died"):
            run.advance(engine)
        run.advance(engine)
    assert run.server.round == 2


def test_certificates_pass_the_strict_checks_of_newer_pythons(tmp_path: Path) -> None:
    """Python 3.13 has them on."""
    pytest.importorskip("cryptography")
    from flatlab.federated.flower.local import write_certificates

    folder = write_certificates(tmp_path / "tls")
    trusting = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "server.crt", folder / "server.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.version() == server.version() == "TLSv1.3"


def test_a_node_takes_the_socket_of_one_that_was_killed(toy_world: Callable[..., World], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "node"))  # and leaves its file
    (share,) = make_shares(toy_world(), 1)
    threading.Thread(target=Node(share, tmp_path).serve, args=(tmp_path / "node",), daemon=True).start()
    for _ in range(200):
        try:
            with Client(str(tmp_path / "node"), "AF_UNIX") as asking:
                asking.send_bytes(pack({"do": "present"}))
                assert unpack(asking.recv_bytes())[0]["name"] == share.name
                return
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.05)
    pytest.fail("nobody answers")


class Doomed(Wire):
    """Every node dies on the way of whatever it is to train, and is back at once."""

    def push(self, messages: Sequence[tuple[int, bytes]], group: str) -> list[str]:
        self.deaths |= {
            self.count + n for n, (_, payload) in enumerate(messages, start=1) if unpack(payload)[0]["do"] == "train"
        }
        return super().push(messages, group)


def test_a_client_whose_node_dies_in_every_attempt_ends_the_run(
    toy_world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.0)
    world = toy_world(rounds=1)
    engine = engine_on(world, tmp_path)
    engine.dispatch.link = cast(Any, Doomed([Node(share, tmp_path / share.name) for share in make_shares(world, 2)]))
    run = Run(world, tmp_path / "run")
    run.begin()
    with pytest.raises(FlatlabError, match=f"was lost 5 times on the way .at last: {GONE}."):
        run.advance(engine)
