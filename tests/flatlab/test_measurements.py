"""Measurements beside a checkpoint: none replaces one that was made otherwise, or is taken for one of another run."""

import json
from pathlib import Path
from typing import Any

import pytest

from flatlab.federated.config import make_config
from flatlab.runs.fingerprint import fingerprint
from flatlab.runs.measurements import is_current, save_measurement


def content(samples: int, seed: int = 0, **settings: Any) -> dict[str, Any]:
    config = make_config({"model": "mlp", "seed": seed}).plain()
    return {"settings": {"samples": samples, **settings}, "run": {"config": config}, "value": samples}


def test_a_measurement_never_replaces_one_made_otherwise(tmp_path: Path) -> None:
    checkpoint = tmp_path / "final.pt"
    assert save_measurement(checkpoint, "eigs", content(500)).note == ""
    look = save_measurement(checkpoint, "eigs", content(60))
    assert look.path.name == "final.eigs-60.json"
    assert "samples 500, not 60" in look.note
    again = save_measurement(checkpoint, "eigs", content(60) | {"value": 61})
    assert again.path == look.path
    assert save_measurement(checkpoint, "eigs", content(60, which="largest")).path == look.path  # says more, no other
    assert save_measurement(checkpoint, "eigs", content(60, k=2)).path.name == "final.eigs-60-2.json"
    assert save_measurement(checkpoint, "eigs", content(500) | {"value": 501}).path.name == "final.eigs.json"
    assert json.loads((tmp_path / "final.eigs.json").read_text())["value"] == 501

    taken = save_measurement(checkpoint, "eigs", content(100), for_tables=True)
    assert taken.path.name == "final.eigs.json"
    assert "kept as final.eigs-500.json" in taken.note
    assert json.loads((tmp_path / "final.eigs-500.json").read_text())["value"] == 501


@pytest.mark.parametrize(("setting", "value"), [("clients", 1), ("group_by", "fc*"), ("layers", True), ("novel", 3)])
def test_a_setting_that_one_names_and_the_other_leaves_out_is_a_difference(
    setting: str, value: Any, tmp_path: Path
) -> None:
    checkpoint, of = tmp_path / "final.pt", fingerprint(make_config({"model": "mlp"}))
    plain, other = content(60), content(60, **{setting: value})
    for there, then in ((plain, other), (other, plain)):
        (tmp_path / "final.eigs.json").write_text(json.dumps(there))
        assert is_current(tmp_path / "final.eigs.json", there["settings"], of)
        assert not is_current(tmp_path / "final.eigs.json", then["settings"], of)
        saved = save_measurement(checkpoint, "eigs", then)
        assert saved.path.name == "final.eigs-60.json"
        assert json.loads((tmp_path / "final.eigs.json").read_text()) == there
        assert f"({setting} " in saved.note
        saved.path.unlink()


def test_a_setting_that_a_file_leaves_out_is_as_by_default(tmp_path: Path) -> None:
    path, of = tmp_path / "final.eigs.json", fingerprint(make_config({"model": "mlp"}))
    path.write_text(json.dumps(content(60, k=1, layers="all")))  # of a version that had one end and one matrix
    wanted = {"samples": 60, "k": 1, "layers": "all", "which": "largest", "matrix": "hessian"}
    assert is_current(path, wanted, of)
    assert not is_current(path, wanted | {"which": "both"}, of)


def test_a_measurement_of_another_run_is_no_rival(tmp_path: Path) -> None:
    checkpoint = tmp_path / "final.pt"
    save_measurement(checkpoint, "eigs", content(500, seed=1))
    saved = save_measurement(checkpoint, "eigs", content(60))
    assert saved.path.name == "final.eigs.json"
    assert "of another run" in saved.note
    assert (tmp_path / "final.eigs-500.json").exists()


def test_what_is_current_is_of_this_run_and_made_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "final.eigs.json"
    of = fingerprint(make_config({"model": "mlp"}))
    wanted = {"samples": 500, "dtype": "float32", "k": 1}
    assert not is_current(path, wanted, of)
    save_measurement(tmp_path / "final.pt", "eigs", content(500, dtype="float32", k=1))
    assert is_current(path, wanted, of)
    assert not is_current(path, wanted | {"k": 2}, of)
    assert not is_current(path, wanted, fingerprint(make_config({"model": "mlp", "seed": 1})))
    older = {"data": {"samples": 500}, "run": content(500)["run"]}  # from before settings were kept
    path.write_text(json.dumps(older))
    assert is_current(path, wanted, of)
    assert not is_current(path, wanted | {"samples": 200}, of)


def test_a_broken_file_of_another_name_loses_no_measurement(tmp_path: Path) -> None:
    checkpoint = tmp_path / "final.pt"
    save_measurement(checkpoint, "eigs", content(2000))
    (tmp_path / "final.eigs-60.json").write_text("{")
    saved = save_measurement(checkpoint, "eigs", content(60))
    assert saved.path.name == "final.eigs-60-2.json"
    assert (tmp_path / "final.eigs-60.json").read_text() == "{"
