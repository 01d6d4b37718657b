"""Numbers that were measured in different ways stand in no table or figure together."""

import json
from pathlib import Path

import pytest

from figures.gallery import draw_figures
from figures.tables import make_tables
from flatlab.grid.saved_results import read_results


@pytest.mark.parametrize(("kind", "figure"), [("eigs", "layers"), ("trace", "curvature"), ("density", "density")])
def test_numbers_measured_in_different_ways_stand_in_no_table_or_figure(kind: str, figure: str, results: Path) -> None:
    path = results / "fedavg-man-dirichlet-0.3-s0" / f"final.{kind}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"data": {**content["data"], "samples": 60}}))
    read = read_results(results)
    reason = f"final.{kind}.json of fedavg-dirichlet-0.3-s0 was made with samples 500, final.{kind}.json of"
    _, skipped = make_tables(read)
    assert kind == "density" or any(why.startswith(reason) for why in skipped.values())
    drawn, not_drawn = draw_figures(read)
    assert figure not in drawn
    assert not_drawn[figure].startswith(reason)


def test_of_two_runs_one_that_tracked_its_eigenvalues_is_not_drawn_beside_one_that_was_measured(results: Path) -> None:
    metrics = results / "fedavg-dirichlet-0.3-s0" / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    for record in records[::4]:
        record["curvature"] = {"samples": 500, "global": {"value": 7.0}}
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    _, skipped = draw_figures(read_results(results))
    assert skipped["training"].endswith("with no: measure them alike")


def test_settings_are_compared_with_whichever_file_says_them(results: Path) -> None:
    """The first file is from before the tolerance was kept."""
    for name, settings in (("fedavg-iid-s0", {"samples": 500, "tol": 1e-3}), ("fedsam-iid-s0", {"tol": 1e-2})):
        path = results / name / "final.eigs.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": settings}))
    _, skipped = make_tables(read_results(results))
    assert skipped["top_eigenvalue"].startswith("final.eigs.json of fedavg-iid-s0 was made with tol 0.001")


def test_a_setting_that_only_one_file_names_keeps_a_table_from_mixing_them(results: Path) -> None:
    path = results / "fedsam-iid-s0" / "final.eigs.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"settings": {**saved.get("settings", {}), "group_by": "fc*"}}))
    for other in results.glob("*/final.eigs.json"):
        plain = json.loads(other.read_text())
        other.write_text(json.dumps({"settings": {"samples": plain["data"]["samples"]}} | plain))
    _, skipped = make_tables(read_results(results))
    assert "was made with group_by unset" in skipped["top_eigenvalue"]
    assert "final.eigs.json of fedsam-iid-s0 with fc*" in skipped["top_eigenvalue"]
