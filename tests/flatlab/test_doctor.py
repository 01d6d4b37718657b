"""`flatlab doctor`: what it finds, and that it says what will not work."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import typer

from flatlab.cli.doctor import doctor
from flatlab.cores import available_cores
from flatlab.measuring import surroundings
from flatlab.measuring.surroundings import examine
from tests.command_line import flatlab


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No variable is set; the cache is a folder that is not there yet."""
    for name in surroundings.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLATLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_it_is_one_screen_and_its_json_says_the_same(bare: Path, tmp_path: Path) -> None:
    done = flatlab("doctor", "--json", "found.json", cwd=tmp_path, width=80)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) <= 24
    assert max(map(len, done.stdout.splitlines())) <= 80
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["versions"]["python"] == platform.python_version()
    for package in ("torch", "numpy", "scipy", "pyhessian"):
        assert found["versions"][package] == version(package)
        assert f"{package} {version(package)}" in " ".join(done.stdout.split())
    assert found["processor"]["cores"] == available_cores()
    assert found["processor"]["capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["problems"] == []
    assert not (tmp_path / "cache").exists()  # it only looks


def test_data_are_found_where_they_are_looked_for(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cifar100", "mine", ".hidden"):
        (bare / "data" / name).mkdir(parents=True)
    monkeypatch.setenv("FLATLAB_DATA", str(bare / "data"))
    found = examine()
    assert found.data["cifar100"].source == str((bare / "data" / "cifar100").resolve())
    assert found.data["cifar100"].at_hand
    assert found.data["cifar10"].source == "uoft-cs/cifar10"
    assert not found.data["cifar10"].at_hand
    assert found.others == ("mine",)
    assert found.data_root == found.environment["FLATLAB_DATA"] == str(bare / "data")
    assert examine(bare).data["cifar100"].source == "uoft-cs/cifar100"  # the option wins over the variable


def test_what_will_not_work_is_said(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (bare / "file").touch()
    monkeypatch.setenv("FLATLAB_DATA", str(bare / "[nowhere]"))
    monkeypatch.setenv("FLATLAB_CACHE", str(bare / "file" / "cache"))
    found = examine()
    assert ["[nowhere] (--data-root" in one for one in found.problems] == [True, False]
    assert "FLATLAB_CACHE" in found.problems[1]
    with pytest.raises(typer.Exit) as left:
        doctor()
    assert left.value.exit_code == 1
    said = capsys.readouterr()
    assert "[nowhere]" in "".join(said.out.split())  # and not taken for rich's markup
    assert len([line for line in said.err.splitlines() if line]) == 2


def test_emulated_bfloat16_is_told_from_real(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, there in (("_is_avx512_bf16_supported", False), ("_is_amx_tile_supported", True)):
        monkeypatch.setattr(torch.cpu, name, lambda there=there: there)
    found = examine().processor
    assert found.bf16
    assert found.instructions["AMX"]
    assert not found.instructions["AVX512-BF16"]
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not examine().processor.bf16
