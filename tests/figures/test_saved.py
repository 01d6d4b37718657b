"""Saved results: checked as they are read, and numbers that are not finite are said to be left out."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from figures.gallery import FIGURES
from figures.statistics import paired_difference, sample
from figures.tables import make_tables
from flatlab.errors import UsageError
from flatlab.grid.saved_results import read_results
from flatlab.runs.fingerprint import Fingerprint
from flatlab.runs.measurements import is_current
from flatlab.runs.saved import check_record, read_measurement, read_records, read_study


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1 is not valid JSON"),
        ("[1]", "line 1, input should be a valid dictionary"),
        ("{}", "round does not fit: field required"),
        ('{"round": true}', "round does not fit"),
        ('{"round": 1.0}', "round does not fit"),
        ('{"round": 1, "test_accuracy": 37}', "test_accuracy = 37 is no share"),
        ('{"round": 1, "test_accuracy": "0.5"}', "test_accuracy"),
        ('{"round": 2}\n{"round": 2}', "line 2, round = 2 does not follow"),
        ('{"round": 1, "curvature": {"global": 3}}', r"curvature\.global does not fit"),
        ('{"x": ' * 50_000, "nested too deeply"),
        (f'{{"round": {"9" * 5000}}}', "not valid JSON"),
        ("\udcff", "not valid JSON"),
    ],
)
def test_a_line_of_metrics_is_refused_by_number_and_field(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(f"{text}\n".encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=said) as caught:
        read_records(path)
    assert "metrics.jsonl" in str(caught.value)


def test_a_line_that_a_crash_cut_off_is_no_line(tmp_path: Path) -> None:
    (tmp_path / "m").write_text('{"round": 1, "anything": [1]}\n{"round": 2, "te')
    assert read_records(tmp_path / "m") == [{"round": 1, "anything": [1]}]
    assert read_records(tmp_path / "none") == []
    assert check_record({}, "c.pt, metrics", part=True) == {}


@pytest.mark.parametrize(
    ("kind", "edit", "said"),
    [
        ("eigs", lambda c: c["global"].update(eigenvalues=[]), r"global\.eigenvalues does not fit"),
        ("eigs", lambda c: c["layers"][1].pop("name"), r"layers\.1\.name does not fit"),
        ("eigs", lambda c: c["data"].update(samples=-1), r"data\.samples does not fit"),
        ("eigs", lambda c: c["run"].update(round="9"), r"run\.round does not fit"),
        ("trace", lambda c: c["trace"].update(value=[None]), r"trace\.value does not fit"),
        ("trace", lambda c: c.update(versions=[1]), "versions does not fit"),
        ("trace", lambda c: c.update(settings=5), "settings does not fit"),
        ("split", lambda c: c.update(fingerprint=[]), "fingerprint does not fit"),
        ("density", lambda c: c.update(nodes=7), "nodes does not fit"),
        ("density", lambda c: c["grid"].pop(), "differ in length"),
        ("density", lambda c: c.update(sigma=0.0), "sigma does not fit"),
        ("surface", lambda c: c["losses"][0].pop(), "losses is not a table"),
        ("split", lambda c: c["counts"].append([1]), "counts is not a table"),
        ("split", lambda c: c["counts"][0].__setitem__(0, -1), r"counts\.0\.0 does not fit"),
    ],
)
def test_a_measurement_is_refused_by_field(
    kind: str, edit: Callable[[Any], None], said: str, results: Path, flatlab: Callable[..., int], capsys: Any
) -> None:
    path = results / "fedavg-dirichlet-0.3-s0" / f"final.{kind}.json"
    content = json.loads(path.read_text())
    assert read_measurement(path, kind) == content
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=said) as caught:
        read_measurement(path, kind)
    assert str(path) in str(caught.value)
    assert flatlab("report", str(results)) == 2
    assert capsys.readouterr().err.startswith(f"flatlab: In {path}")


@pytest.mark.parametrize("name", ["final.eigs.json", "metrics.jsonl", "config.toml", "final.pt"])
def test_a_damaged_file_is_the_failure_of_its_cell_alone(
    name: str, results: Path, flatlab: Callable[..., int], tmp_path: Path
) -> None:
    path = results / "fedavg-iid-s0" / name
    path.write_bytes(b"{" + path.read_bytes()[:100])
    words = ("reproduce", str(results / "grid.toml"), "--out", str(results), "--list-cells")
    assert flatlab(*words, "--json", str(tmp_path / "cells.json")) == 0
    cells = json.loads((tmp_path / "cells.json").read_text())["cells"]
    assert cells["fedavg-iid-s0"]["state"] == "failed"
    assert str(path) in cells["fedavg-iid-s0"]["failure"]
    assert sum(cell["state"] == "failed" for cell in cells.values()) == 1


@pytest.mark.parametrize(
    "content",
    [[], 3, {"settings": 5}, {"data": 5}, {"run": []}, {"nodes": 3}, {"losses": 1}, {"fingerprint": {"data": 1}}],
)
def test_a_file_in_the_place_of_a_measurement_is_refused_before_it_is_compared(content: object, tmp_path: Path) -> None:
    path = tmp_path / "final.eigs.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=rf"In {path}, "):
        is_current(path, {}, Fingerprint(""))
    path.write_text(json.dumps({"run": None, "losses": [[1.0]]}))
    assert is_current(path, {"points": 1}, Fingerprint(""))


@pytest.mark.parametrize("content", [[], {}, {"verdicts": 3}, {"verdicts": [{"contrast": "x", "group": "{"}]}])
def test_a_study_is_refused_too(content: object, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"study\.json"):
        read_study(tmp_path / "study.json")


def test_a_grid_that_is_no_text_is_refused_beside_its_results(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_bytes(b'title = "\xff"\n')
    with pytest.raises(UsageError, match=r"The grid .*grid\.toml is not valid TOML: .*0xff"):
        read_results(tmp_path)


def test_null_is_a_number_that_is_not_finite(results: Path) -> None:
    path = results / "fedavg-dirichlet-0.3-s0" / "final.surface.json"
    content = json.loads(path.read_text())
    content["losses"][1][2] = None
    path.write_text(json.dumps(content))
    losses = read_measurement(path, "surface")["losses"]
    assert [i for i, line in enumerate(losses) for loss in line if math.isnan(loss)] == [1]
    rows = FIGURES["surface"].draw(read_results(results)).rows
    assert sum(row["loss"] is None for row in rows) == 1


def test_a_mean_leaves_out_what_is_not_finite_and_counts_it() -> None:
    found = sample([1.0, math.nan, 3.0, math.inf])
    assert found is not None
    assert (found.mean, found.count, found.left_out) == (2.0, 2, 2)
    nothing = sample([math.nan])
    assert nothing is not None
    assert (math.isnan(nothing.mean), nothing.deviation, nothing.count, nothing.left_out) == (True, None, 0, 1)
    difference = paired_difference({0: 1.0, 1: math.nan, 2: 3.0}, {0: 2.0, 1: 1.0, 2: 5.0})
    assert difference is not None
    assert (difference.mean, difference.pairs) == (1.5, 2)
    assert paired_difference({0: math.nan}, {0: 1.0}) is None


def _set_traces(results: Path, value: float | None, only: str) -> None:
    for path in results.glob(f"{only}/final.trace.json"):
        content = json.loads(path.read_text())
        content["trace"]["value"] = value
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("value", [math.nan, None])  # our own JSON has null for it
def test_a_table_says_what_it_leaves_out(value: float | None, results: Path) -> None:
    _set_traces(results, value, "fedavg-dirichlet-0.3-s0")
    table = next(table for table in make_tables(read_results(results))[0] if table.name == "trace")
    assert "(2; 1 not finite)" in table.rows[0][2]
    assert (table.numbers[0]["without_seeds"], table.numbers[0]["without_not_finite"]) == (2, 1)
    assert "nan" not in str(table.rows)


@pytest.mark.long
def test_a_table_of_nothing_but_nan_says_so(results: Path, flatlab: Callable[..., int]) -> None:
    _set_traces(results, math.nan, "*")
    table = next(table for table in make_tables(read_results(results))[0] if table.name == "trace")
    assert {row[2] for row in table.rows} == {"n/a (3 not finite)"}
    assert flatlab("report", str(results)) == 0
