"""What did not converge is marked wherever its number stands: tables, ranks, report, figures and their CSV."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from figures.client_curvature import draw_client_curvature
from figures.drawing import Drawing
from figures.gallery import FIGURES
from figures.layer_eigenvalues import draw_layers
from figures.layer_traces import draw_layer_traces
from figures.local_global import draw_local_global
from figures.man_table import man_table
from figures.method_tables import agreement_table, ranks_table
from figures.relative_flatness import draw_relative_flatness
from figures.results import Result, Results
from figures.tables import make_tables
from figures.unconverged import MEANING
from flatlab.errors import UsageError
from flatlab.grid.saved_results import read_results
from flatlab.runs.saved import read_measurement
from tests.figures.test_method_tables import results as many_methods

BAD = {"converged": False, "rounded": False}
ROUNDED = {"converged": False, "rounded": True}
RUN = "fedavg-man-dirichlet-0.3-s1"


def spoil(results: Path, kind: str, how: Mapping[str, bool] = BAD, run: str = RUN) -> None:
    """Let the run's top eigenvalues, of layers too, or its trace not have converged."""
    path = results / run / f"final.{kind}.json"
    content = json.loads(path.read_text())
    for entry in [content] if kind == "trace" else [content["global"], *content["layers"]]:
        (entry if kind == "trace" else entry["eigenvalues"][0]).update(how)
    path.write_text(json.dumps(content))


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


@pytest.mark.parametrize(
    ("kind", "name", "how", "mark", "note"),
    [
        ("trace", "trace", BAD, "!", "! not converged, the standard error being above the share of the trace"),
        ("trace", "trace", ROUNDED, "~", "~ exact to rounding alone, which is above the tolerance"),
        ("eigs", "top_eigenvalue", BAD, "!", "! not converged, or a larger one is not excluded"),
        ("eigs", "top_eigenvalue", ROUNDED, "~", "~ exact to rounding alone, which is above the tolerance"),
    ],
)
def test_a_table_marks_its_cell_and_names_the_run(
    kind: str, name: str, how: Mapping[str, bool], mark: str, note: str, results: Path
) -> None:
    spoil(results, kind, how)
    table = next(table for table in make_tables(read_results(results))[0] if table.name == name)
    assert [cell.endswith(f" {mark}") for cell in table.rows[0][2:5]] == [False, True, False]
    assert not any(cell.endswith(("!", "~")) for row in table.rows[1:] for cell in row)
    (said,) = table.doubts
    assert said.startswith(note)
    assert said.endswith(f": {RUN}.")
    assert [table.numbers[0][f"{side}_unconverged"] for side in ("without", "with")] == [0, 1]


def test_the_report_says_it_of_the_run_and_among_its_findings(results: Path, flatlab: Callable[..., int]) -> None:
    spoil(results, "trace")
    assert flatlab("report", str(results)) == 0
    page = (results / "report.html").read_text()
    assert page.count("3200 (not converged)") == 1
    assert page.count("In 1 row not every number is converged.") == 1


@pytest.mark.parametrize(("name", "kind"), [("curvature", "trace"), ("curvature", "eigs"), ("zeta", "trace")])
def test_a_figure_of_means_marks_them(name: str, kind: str, results: Path) -> None:
    clean = FIGURES[name].draw(read_results(results))
    assert {row["unconverged"] for row in clean.rows} == {0}
    assert "not converged" not in words(clean.figure)
    spoil(results, kind)
    drawing = FIGURES[name].draw(read_results(results))
    quantity = "trace" if kind == "trace" else "top eigenvalue"
    assert [row["quantity"] for row in drawing.rows if row["unconverged"]] == [quantity]
    texts = words(drawing.figure).splitlines()
    assert "! not converged" in texts
    assert texts.count("!") == 1
    assert drawing.files()["png"]


def test_layers_that_did_not_converge_are_crossed(results: Path) -> None:
    for how, meaning in ((BAD, "not converged"), (ROUNDED, "exact to rounding alone")):
        spoil(results, "eigs", how)
        drawing = FIGURES["layers"].draw(read_results(results))
        assert {row["run"] for row in drawing.rows if row["doubt"]} == {RUN}
        assert meaning in words(drawing.figure).splitlines()


def with_local(run: Result) -> Result:
    """Its flatness and its clients' curvature beside what it has."""
    number: Any = run.top_eigenvalue
    own = {"eigenvalues": [{"value": number}], "trace": {"value": 3 * number}}
    means = {what: {"own_at_own": number, "discrepancy": number / 2} for what in ("eigenvalue", "trace")}
    local = {"settings": {}, "global": {"eigenvalues": [{"value": number}]}, "means": means}
    local["clients"] = [{"own_at_own": own}]
    flatness = {"settings": {}, "layers": [{"by_trace": number}], "adaptive_sharpness": {"value": number}}
    flatness["trace"] = {"value": number}
    return replace(run, measured={**run.measured, "local": local, "flatness": flatness})


@pytest.mark.parametrize(
    ("path", "measures"),
    [
        (("eigs", "global", "eigenvalues", 0), {"λ₁"}),
        (("trace",), {"trace"}),
        (("flatness", "trace"), {"relative"}),
        (("local", "clients", 0, "own_at_own", "eigenvalues", 0), {"local λ₁", "excess"}),
        (("local", "clients", 0, "own_at_own", "trace"), {"local trace"}),
        (("local", "global", "eigenvalues", 0), {"excess"}),
    ],
)
def test_ranks_changes_and_agreements_mark_what_they_are_made_of(path: tuple[Any, ...], measures: set[str]) -> None:
    runs = [with_local(run) for run in many_methods().runs]
    plain = Results(Path(), None, tuple(runs))
    spoilt = json.loads(json.dumps(runs[0].measured))
    entry = spoilt
    for step in path:
        entry = entry[step]
    entry.update(BAD)
    doubtful = Results(Path(), None, (replace(runs[0], measured=spoilt), *runs[1:]))
    for make, makes in ((ranks_table, 1), (man_table, 1)):
        assert not make(plain).doubts
        table = make(doubtful)
        marked = [(n["algorithm"], n["measure"]) for n in table.numbers if n["doubt"]]
        assert sorted(marked) == sorted(("fedavg", measure) for measure in measures)
        assert sum(cell.endswith(" !") for row in table.rows for cell in row) == makes * len(measures)
        assert table.doubts == ["! of a run behind it the number is not converged, as its measurement says."]
    agreements = agreement_table(doubtful)
    assert all(bool(n["doubt"]) == bool({n["one"], n["other"]} & measures) for n in agreements.numbers)
    assert agreements.doubts


TOP = {"value": 8.0, "residual": 0.01}
HEAD = {
    "checkpoint": "run/final.pt",
    "data": {"dataset": "digits", "split": "train", "samples": 500},
    "versions": {"torch": "2.13.0"},
}


def eigenvalues(how: Mapping[str, bool]) -> Drawing:
    layer = {"name": "fc1", "output_norm2": 3.0, "eigenvalues": [{**TOP, **how}]}
    return draw_layers([{**HEAD, "global": {"eigenvalues": [TOP]}, "layers": [layer]}])


def traces(how: Mapping[str, bool]) -> Drawing:
    estimate = {"value": 9.0, "standard_error": 1.0}
    return draw_layer_traces([{**HEAD, "trace": estimate, "layers": [{"name": "fc1", "trace": estimate}], **how}])


def flatness(how: Mapping[str, bool]) -> Drawing:
    layer = {"name": "fc1", "weight_norm2": 2.0, "by_eigenvalue": 16.0, "top": TOP, "by_trace": 60.0}
    layer["trace"] = {"standard_error": 1.5}
    return draw_relative_flatness([{**HEAD, "layers": [layer], "trace": {"value": 9.0, **how}}])


def clients(how: Mapping[str, bool]) -> Drawing:
    client = {"client": 0, "samples": 90, "eigenvalues": [{**TOP, **how}]}
    return draw_client_curvature([{**HEAD, "clients": [client], "statement_F": {"left": 5.0, "right": 6.0}}])


def local(how: Mapping[str, bool]) -> Drawing:
    top = {"eigenvalues": [TOP]}
    client = {"client": 0, "distance": 0.5, "own_at_own": top, "own_at_global": top}
    client["whole_at_own"] = {"eigenvalues": [{**TOP, **how}]}
    return draw_local_global([{**HEAD, "global": top, "clients": [client]}])


@pytest.mark.parametrize("draw", [eigenvalues, traces, flatness, clients, local])
def test_a_command_s_figure_marks_what_did_not_converge(draw: Callable[[Mapping[str, bool]], Drawing]) -> None:
    assert "converged" not in words(draw({}).figure)
    drawing = draw(BAD)
    said = MEANING if draw in (clients, local) else "! not converged"
    assert said in words(drawing.figure).splitlines()
    assert any(row.get("converged") is False or row.get("by_trace_mark") == "!" for row in drawing.rows)
    assert drawing.files()["png"]


def test_what_marks_are_read_from_has_a_form(tmp_path: Path) -> None:
    path = tmp_path / "clients-0001.local.json"
    means = {"eigenvalue": dict.fromkeys(("own_at_own", "whole_at_global", "discrepancy", "transfer"), 1.0)}
    content = {"data": {"dataset": "digits", "samples": 9}, "run": {"round": 1}, "means": means, "distance": 1.0}
    path.write_text(json.dumps(content | {"clients": [{"own_at_own": {"eigenvalues": [TOP]}}]}))
    read_measurement(path, "local")
    path.write_text(json.dumps(content | {"clients": [{"own_at_own": {"eigenvalues": []}}]}))
    with pytest.raises(UsageError, match="eigenvalues"):
        read_measurement(path, "local")
