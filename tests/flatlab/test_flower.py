"""Flower itself: a SuperLink and two nodes as processes on the loopback, with TLS, and what is trained over them.

Three runs of ten rounds share the federation. In the middle of them the server of one is killed and started again, and
so is a node; every run ends with the bits of the process engine.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr")

from flatlab.federated.flower.local import start_superlink, write_certificates
from flatlab.federated.flower.programs import environment, free_port, program, stop
from flatlab.files import write_text
from tests.command_line import SECONDS, flatlab, wait_until
from tests.command_line import environment as of_this_tree

pytestmark = pytest.mark.long

ROUNDS = 10
RUN = (
    f"--clients 4 --rounds {ROUNDS} --participation 0.5 --seed 1 --set train_samples=120 --set test_samples=40".split()
)
METHODS = {
    "fedavg": ["--algorithm", "fedavg"],
    "scaffold": ["--algorithm", "scaffold"],
    "feddyn": ["--algorithm", "feddyn", "--man", "--zeta", "0.05"],
}

Process = subprocess.Popen[bytes]


def start(*words: object, home: Path, log: Path) -> Process:
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "flatlab", *map(str, words)],
            env=environment(home) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": of_this_tree()["PYTHONPATH"]},
            stdout=file,
            stderr=file,
            cwd=home,
        )


def rounds_of(folder: Path) -> list[dict[str, object]]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@dataclass(frozen=True)
class Federation:
    """A SuperLink and its nodes."""

    home: Path  # Flower's folder, and everything else
    address: str
    nodes: dict[str, Process]

    def start_node(self, name: str) -> None:
        words = ["node", self.home / "shares" / f"{name}.pt", "--superlink", self.address, "--out", self.home / name]
        words += ["--root-certificates", self.home / "tls" / "ca.crt"]
        self.nodes[name] = start(*words, home=self.home, log=self.home / f"{name}.log")

    def start_run(self, name: str) -> Process:
        words = ["train", *RUN, *METHODS[name], "--engine", "flower", "--superlink", "here", "--out", self.home / name]
        return start(*words, home=self.home, log=self.home / f"{name}.log")


def test_nobody_else_reads_the_key(tmp_path: Path) -> None:
    folder = write_certificates(tmp_path)  # which others may read
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("ca.crt", "server.crt", "server.key"), 0o600
    )


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    home = tmp_path_factory.mktemp("flower")
    certificates = write_certificates(home / "tls")
    address = f"127.0.0.1:{free_port()}"
    write_text(
        home / "config.toml",
        f'[superlink.here]\naddress = "{address}"\nroot-certificates = "{certificates / "ca.crt"}"\n',
    )
    made = flatlab("train", *RUN, "--save-shares", home / "shares", "--workers", 2, cwd=home)
    assert made.returncode == 0, made.stderr
    superlink = start_superlink(address, certificates, home / "superlink.log", home)
    federation = Federation(home, address, {})
    try:
        for node in ("node-0", "node-1"):
            federation.start_node(node)
        yield federation
    finally:
        for process in (*federation.nodes.values(), superlink):
            stop(process)


@pytest.fixture(scope="module")
def trained(federation: Federation) -> Federation:
    """The federation after all three runs, SCAFFOLD's server and a node killed on the way."""
    runs = {name: federation.start_run(name) for name in METHODS}
    try:
        wait_until(lambda: len(rounds_of(federation.home / "scaffold")) >= 3)
        runs["scaffold"].kill()
        runs["scaffold"].wait()
        runs["scaffold"] = federation.start_run("scaffold")
        wait_until(lambda: len(rounds_of(federation.home / "feddyn")) >= 5)
        federation.nodes["node-1"].send_signal(signal.SIGKILL)
        federation.nodes["node-1"].wait()
        federation.start_node("node-1")
        for name, run in runs.items():
            assert run.wait(SECONDS) == 0, (federation.home / f"{name}.log").read_text()
    finally:
        for run in runs.values():
            run.kill()
    return federation


@pytest.mark.parametrize("name", METHODS)
def test_ten_rounds_on_two_nodes_give_the_bits_of_the_process_engine(
    name: str, trained: Federation, tmp_path: Path
) -> None:
    done = flatlab("train", *RUN, *METHODS[name], "--workers", 2, "--out", tmp_path / name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    here, there = (
        torch.load(folder / name / "final.pt", weights_only=True)["state_dict"] for folder in (tmp_path, trained.home)
    )
    assert {key: torch.equal(tensor, there[key]) for key, tensor in here.items()} == dict.fromkeys(here, True)
    for mine, theirs in zip(rounds_of(tmp_path / name), rounds_of(trained.home / name), strict=True):
        assert (mine["participants"], mine["train_loss"]) == (theirs["participants"], theirs["train_loss"])


def test_the_node_that_died_is_named(trained: Federation) -> None:
    said = [line for name in METHODS for line in (trained.home / f"{name}.log").read_text().splitlines()]
    assert any(line.startswith("node-1 is gone in round ") for line in said)


def test_clients_vectors_are_with_their_nodes_alone(trained: Federation) -> None:
    for name in ("scaffold", "feddyn"):
        assert not list((trained.home / name / "clients").glob("*"))
    for node, clients in {"node-0": {0, 2}, "node-1": {1, 3}}.items():
        found = {int(file.name.split("-")[0]) for file in (trained.home / node).rglob("*.pt")}
        assert found
        assert found <= clients


def test_flowers_simulation_gives_the_bits_of_the_process_engine(federation: Federation, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    words = ["train", *RUN, "--algorithm", "scaffold", "--rounds", 4]
    here = flatlab(*words, "--workers", 2, "--out", "here", cwd=tmp_path)
    assert here.returncode == 0, here.stderr
    engine = ["--workers", 2, "--engine", "flower", "--superlink", "simulation", "--out", tmp_path / "there"]
    run = start(*words, *engine, home=tmp_path, log=tmp_path / "it.log")
    assert run.wait(SECONDS) == 0, (tmp_path / "it.log").read_text()
    mine, theirs = (
        torch.load(tmp_path / name / "final.pt", weights_only=True)["state_dict"] for name in ("here", "there")
    )
    assert {key: torch.equal(tensor, theirs[key]) for key, tensor in mine.items()} == dict.fromkeys(mine, True)


def test_a_superlink_that_flower_does_not_know_is_one_sentence(federation: Federation) -> None:
    log = federation.home / "unknown.log"
    words = ["train", *RUN, "--engine", "flower", "--superlink", "nowhere", "--out", federation.home / "unknown"]
    assert start(*words, home=federation.home, log=log).wait(SECONDS) == 2
    (sentence,) = log.read_text().splitlines()
    assert "could not start a run on the SuperLink nowhere (" in sentence
    assert not (federation.home / "unknown").exists()


def test_what_is_not_encrypted_is_refused(federation: Federation) -> None:
    log = federation.home / "plain.log"
    words = [program("flower-supernode"), "--insecure", "--superlink", federation.address, "--max-retries", "1"]
    with log.open("ab") as file:
        plain = subprocess.run(
            [*words, "--port", str(free_port())],
            env=environment(federation.home),
            stdout=file,
            stderr=file,
            timeout=SECONDS,
        )
    assert plain.returncode != 0
    assert "SuperNode ID" not in log.read_text()
