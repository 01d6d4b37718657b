"""What `eigs`, `trace`, `density` and `surface` say to options and checkpoints that do not fit."""

import sys
from pathlib import Path

import pytest

from flatlab.cli.main import main
from flatlab.cli.watched_run import train_run
from flatlab.federated.config import make_config
from flatlab.federated.execution import Execution

RUN = {"rounds": 1, "clients": 4, "local_epochs": 1, "hidden": (5,), "train_samples": 200}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(make_config(RUN), tmp_path_factory.mktemp("run") / "it", Execution(workers=1))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("eigs", "CKPT", "--clients", "4"), "--clients is all, or numbers from 0 to 3"),
        (("eigs", "CKPT", "--clients", "0,x"), "not 'x'"),
        (("eigs", "CKPT", "--clients", "0", "--samples", "51"), "This client holds 50 training images"),
        (("eigs", "CKPT", "--clients", "all", "--samples", "3"), "holds none of the 3 samples"),
        (("eigs", "CKPT", "--clients", "0", "--per-batch", "8"), "ask for one at a time"),
        (("eigs", "CKPT", "--clients", "0", "--layers", "fc1"), "--layers does nothing beside --clients"),
        (("eigs", "CKPT", "--per-batch", "8", "--method", "power"), "--method does nothing beside --per-batch"),
        (("eigs", "CKPT", "--per-batch", "500"), "between 1 and the 200 samples, not 500"),
        (("eigs", "CKPT", "--full", "--samples", "9"), "give one of them"),
        (("trace", "CKPT", "--tol", "2"), "--tol is a share of the trace"),
        (("trace", "none.pt"), "There is no file none.pt"),
        (("density", "CKPT", "--samples", "999"), "digits has 200 training images"),
        (("density", "CKPT", "--dtype", "half"), "--dtype is float32 or float64"),
        (("surface", "CKPT", "--along", "axes"), "--along is random or eigenvectors"),
        (("surface", "CKPT", "--extent", "0"), "--extent is a positive number"),
        (("surface", "CKPT", "--device", "cuda"), "There is no device 'cuda'"),
        (("surface",), "Name a checkpoint"),
    ],
)
def test_bad_input_is_one_sentence(
    words: tuple[str, ...],
    sentence: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(checkpoint) if word == "CKPT" else word for word in words]
    monkeypatch.setattr(sys, "argv", ["flatlab", *given])
    with pytest.raises(SystemExit) as left:
        main()
    said = " ".join(capsys.readouterr().err.split())
    assert left.value.code == 2, said
    assert sentence in said
    assert "Traceback" not in said
