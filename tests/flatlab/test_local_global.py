"""Clients' own models kept, and their curvature beside the global one's, against dense Hessians in float64."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import flatlab as interface
from analysis.subspaces import dissimilarity, principal_angles
from flatlab.data import normalise
from flatlab.errors import UsageError
from flatlab.federated.config import make_config
from flatlab.federated.execution import Execution, carry_out
from flatlab.federated.rounds import Run
from flatlab.federated.world import World, make_world
from flatlab.grid.cell_progress import settings_of_kind
from flatlab.grid.cells import MEASURES
from flatlab.grid.plan import Measure
from flatlab.measuring.subjects import Measurement, open_subject
from flatlab.runs.checkpoint import load_checkpoint
from flatlab.runs.metrics import Record
from tests.command_line import flatlab

FIELDS = ("--clients", "6", "--set", "hidden=[3]", "--set", "train_samples=120", "--set", "dtype=float64")
TRAIN = ("train", *FIELDS, "--rounds", "3", "--workers", "1", "--participation", "0.5", "--out", "run")
EXACT = ("--dtype", "float64", "--tol", "1e-8", "--full", "--trace-tol", "0.2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run keeps the clients of its second round."""
    folder = tmp_path_factory.mktemp("kept")
    done = flatlab(*TRAIN, "--keep-clients", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def dense(world: World, theta: Tensor, index: Tensor) -> Tensor:
    """The Hessian of the mean cross-entropy on these samples, at the flat vector."""
    split, data = world.data.train, world.data
    x, y = normalise(split.images[index], data.mean, data.std, dtype=torch.float64), split.labels[index]
    model = world.new_model()

    def loss(at: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, world.layout.views(at), (x,)), y)

    hessian: Tensor = torch.autograd.functional.hessian(loss, theta)
    return hessian


def test_every_curvature_is_the_dense_one(folder: Path) -> None:
    done = flatlab("clients", "run/clients-0002.pt", *EXACT, "--top-k", "2", "--json", "c.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "c.json").read_text())
    checkpoint = load_checkpoint(folder / "run" / "clients-0002.pt")
    world = make_world(checkpoint.config)
    names = world.layout.names
    w = torch.cat([checkpoint.state_dict[name].reshape(-1) for name in names])
    everything = torch.arange(len(world.data.train))
    assert [entry["client"] for entry in found["clients"]] == sorted(int(k) for k in checkpoint.clients)
    assert len(found["clients"]) == 3
    own_at_own = []
    for entry in found["clients"]:
        state = checkpoint.clients[str(entry["client"])]
        theta = torch.cat([state[name].reshape(-1) for name in names])
        part = torch.from_numpy(world.parts[entry["client"]])
        assert entry["distance"] == pytest.approx(float((theta - w).norm()), rel=1e-9)
        places = {"own_at_own": (theta, part), "whole_at_own": (theta, everything), "own_at_global": (w, part)}
        for place, (at, index) in places.items():
            H = dense(world, at, index)
            top = torch.linalg.eigvalsh(H).flip(0)[:2]
            assert [v["value"] for v in entry[place]["eigenvalues"]] == pytest.approx(top.tolist(), rel=1e-6, abs=1e-9)
            trace = entry[place]["trace"]
            assert abs(trace["value"] - float(H.trace())) <= 6 * trace["standard_error"] + 1e-9
        own_at_own.append(entry["own_at_own"]["eigenvalues"][0]["value"])
    whole = float(torch.linalg.eigvalsh(dense(world, w, everything))[-1])
    assert found["global"]["eigenvalues"][0]["value"] == pytest.approx(whole, rel=1e-6)
    assert found["means"]["eigenvalue"]["discrepancy"] == pytest.approx(whole - sum(own_at_own) / 3, rel=1e-5)
    assert 0 <= found["dissimilarity"]["own_at_global"] <= 1
    assert "discrepancy" in done.stdout


def test_a_grid_may_measure_some_of_the_clients(folder: Path) -> None:
    subject = open_subject(folder / "run" / "clients-0002.pt", Measurement(full=True, dtype="float64", kept=True))
    some, all_ = Measure(local_clients=2, trace_tol=0.2), Measure(trace_tol=0.2)
    found, whole = (MEASURES["local"](subject, measure).to_dict() for measure in (some, all_))
    assert found["clients"] == whole["clients"][:2]
    assert len(whole["clients"]) == 3
    assert settings_of_kind("local", some) != settings_of_kind("local", all_)  # one is not taken for the other


def test_what_is_kept_is_what_the_server_averaged(folder: Path) -> None:
    checkpoint = load_checkpoint(folder / "run" / "clients-0002.pt")
    sizes = {k: len(make_world(checkpoint.config).parts[int(k)]) for k in checkpoint.clients}
    for name, value in checkpoint.state_dict.items():
        mean = sum(sizes[k] * state[name] for k, state in checkpoint.clients.items()) / sum(sizes.values())
        torch.testing.assert_close(value, mean)


def test_what_cannot_be_kept_or_measured_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    for words, said in (
        (("clients", "run/final.pt"), "holds no clients' models: train with --keep-clients"),
        (("clients",), "Name a clients-ROUND.pt"),
        ((*TRAIN, "--keep-clients", "1"), "was beyond round 1 when its clients were asked for"),
        ((*TRAIN, "--track-eigs", "1"), "was finished when its eigenvalues were asked for (--track-eigs)"),
        ((*TRAIN, "--keep-clients", "4"), "the run has only 3 rounds"),
        ((*TRAIN, "--keep-clients", "0"), "--keep-clients is a whole number, 1 or more"),
        ((*TRAIN, "--keep-clients", "x"), "--keep-clients is rounds separated by commas"),
    ):
        done = flatlab(*words, cwd=folder)
        assert done.returncode == 2, (words, done.stderr)
        assert said in " ".join(done.stderr.split()), words
    broken = torch.load(folder / "run" / "clients-0002.pt", weights_only=True)
    del next(iter(broken["clients"].values()))["fc1.weight"]
    torch.save(broken, tmp_path / "broken.pt")
    done = flatlab("clients", tmp_path / "broken.pt", cwd=folder)
    assert done.returncode == 2
    assert "fc1.weight is not there" in " ".join(done.stderr.split())


def test_clients_of_a_round_that_is_over_are_refused_before_the_next_is_trained(tmp_path: Path) -> None:
    @contextmanager
    def cut_off(run: Run) -> Iterator[Callable[[Record], None]]:
        def on_round(record: Record) -> None:
            raise KeyboardInterrupt

        yield on_round

    fields = {"clients": 6, "hidden": [3], "train_samples": 120, "rounds": 3}
    config, usual = make_config(fields), Execution(workers=1)
    with pytest.raises(KeyboardInterrupt):
        carry_out(config, tmp_path, usual, watch=cut_off)
    with pytest.raises(UsageError, match="was beyond round 1 when its clients were asked for"):
        carry_out(config, tmp_path, replace(usual, keep_clients=(1, 2)))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    carry_out(config, tmp_path, replace(usual, keep_clients=(2,)))
    assert (tmp_path / "clients-0002.pt").exists()


def test_a_picture(folder: Path) -> None:
    report = interface.local_global(folder / "run" / "clients-0002.pt", samples=60)
    assert len(report.rows()) == 1 + 3 * 3
    figure = report.plot()
    assert len(figure.axes[0].lines) == 4


def test_principal_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(7, 4, dtype=torch.float64, generator=generator))
    turned = torch.stack([Q[:, 0], Q[:, 1] * torch.tensor(1e-9).cos() + Q[:, 2] * 1e-9], dim=1)
    assert principal_angles(Q[:, :2], turned).tolist() == pytest.approx([0, 1e-9], abs=1e-15)  # no cosine shows it
    tilted = torch.stack([Q[:, 0], Q[:, 1] * 0.6 + Q[:, 3] * 0.8], dim=1)
    assert principal_angles(Q[:, :2], tilted).cos().tolist() == pytest.approx([1, 0.6])
    assert dissimilarity(Q[:, :2], tilted) == pytest.approx(1 - (1 + 0.36) / 2)
    assert dissimilarity(Q[:, :1], Q[:, :3]) == pytest.approx(0)
    assert dissimilarity(Q[:, :2], Q[:, 2:]) == pytest.approx(1)
