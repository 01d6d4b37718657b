"""Every figure from saved results: drawn, with its numbers beside it and its origin in it, or skipped with a reason."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from figures.batch_spectrum import draw_batch_spectrum
from figures.drawing import ring
from figures.errors import MissingResultsError
from figures.gallery import FIGURES, draw_figures
from figures.loss_surface import draw_loss_surfaces
from figures.theory_heatmap import draw_theory_heatmap
from figures.theory_scatter import draw_theory_scatter
from figures.tracked_eigenvalues import draw_tracking
from flatlab.files import write_files
from flatlab.grid.saved_results import read_results

Command = Callable[..., int]


@pytest.fixture(scope="module")
def drawn(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The files of every figure."""
    folder = tmp_path_factory.mktemp("drawn")
    drawings, skipped = draw_figures(read_results(finished))
    assert not skipped
    return {name: write_files(folder / name, drawing.files()) for name, drawing in drawings.items()}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_with_its_numbers_and_its_origin(name: str, drawn: dict[str, list[Path]]) -> None:
    picture, print_, numbers = drawn[name]
    with Image.open(picture) as image:
        description = image.info["Description"]
        shades = np.asarray(image.convert("L"))
    assert "commit 0123456789abcdef" in description
    assert '"dataset": "cifar100"' in description
    assert 600 < shades.shape[1] < 1500  # one or two columns of a paper, at 200 dots per inch
    assert (shades < 128).mean() > 0.002  # not blank
    assert b"0123456789abcdef" in print_.read_bytes() or b"/Subject" in print_.read_bytes()
    rows = list(csv.DictReader(numbers.open()))
    assert rows
    assert all(value not in (None, "nan") for row in rows for value in row.values())


@pytest.mark.parametrize("name", FIGURES)
def test_the_callers_backend_and_figures_stay_as_they_are(name: str, finished: Path) -> None:
    usual, open_ = plt.get_backend(), plt.get_fignums()
    plt.switch_backend("svg")
    try:
        FIGURES[name].draw(read_results(finished))
        assert plt.get_backend() == "svg"
        assert plt.get_fignums() == open_
    finally:
        plt.switch_backend(usual)


def test_the_plotted_numbers_are_the_saved_ones(finished: Path, drawn: dict[str, list[Path]]) -> None:
    tables = {name: list(csv.DictReader(paths[2].open())) for name, paths in drawn.items()}

    bars = {
        (r["partition"], r["algorithm"], r["man"]): float(r["mean"])
        for r in tables["curvature"]
        if r["quantity"] == "trace"
    }
    assert bars["iid", "fedsam", "True"] == pytest.approx(3200)
    last = [
        r for r in tables["accuracy"] if r["round"] == "20" and r["partition"] == "iid" and r["algorithm"] == "fedavg"
    ]
    assert [float(r["mean"]) for r in last] == pytest.approx([49, 55])
    assert [float(r["deviation"]) for r in last] == pytest.approx([1, 1])
    zetas = [(float(r["zeta"]), int(r["seeds"])) for r in tables["zeta"] if r["quantity"] == "trace"]
    assert zetas == [(0.0, 3), (0.05, 3), (0.15, 3), (0.5, 3)]
    surface = json.loads((finished / "fedavg-man-dirichlet-0.3-s0" / "final.surface.json").read_text())
    corner = next(r for r in tables["surface"] if "man" in r["run"] and float(r["a"]) == float(r["b"]) == -1)
    assert float(corner["loss"]) == surface["losses"][0][0]
    assert len(tables["layers"]) == 5 * 2 * 2 * 2 * 3  # layers, algorithms, MAN, partitions, seeds: not the other zetas
    rounds = {int(r["round"]) for r in tables["training"] if r["block"] == "network"}
    assert rounds == {10, 20}
    counts = [int(r["samples"]) for r in tables["labels"] if r["partition"] == "iid" and r["client"] == "7"]
    assert len(counts) == 100
    assert sum(counts) == 50


@pytest.mark.parametrize(
    ("name", "pattern", "said"),
    [
        ("accuracy", "final.*", "no run is trained"),
        ("curvature", "final.*.json", "final.eigs.json or final.trace.json"),
        ("surface", "final.surface.json", "final.surface.json"),
        ("density", "final.density.json", "final.density.json"),
        ("layers", "final.eigs.json", "layers"),
        ("training", "round-*.json", "eigenvalues of several rounds"),
        ("labels", "final.split.json", "final.split.json"),
    ],
)
def test_a_figure_without_its_results_is_skipped_with_the_reason(
    name: str, pattern: str, said: str, results: Path
) -> None:
    for path in results.glob(f"*/{pattern}"):
        path.unlink()
    with pytest.raises(MissingResultsError) as reason:
        FIGURES[name].draw(read_results(results))
    assert said in str(reason.value)


def test_tracked_eigenvalues_come_before_those_of_checkpoints(results: Path) -> None:
    for name in ("fedavg-dirichlet-0.3-s0", "fedavg-man-dirichlet-0.3-s0"):
        metrics = results / name / "metrics.jsonl"
        records = [json.loads(line) for line in metrics.read_text().splitlines()]
        for record in records[::4]:
            record["curvature"] = {"global": {"value": 7.0}, "layers": {"fc1": {"value": 3.0}}}
        metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = FIGURES["training"].draw(read_results(results)).rows
    assert {(row["block"], row["eigenvalue"]) for row in rows} == {("network", 7.0), ("fc1", 3.0)}


def test_more_layers_and_runs_than_colours_and_styles_are_drawn() -> None:
    value = {"value": 4.0, "converged": True}
    curvature = {"global": value, "layers": {f"fc{number}": value for number in range(13)}}
    record = {"round": 1, "test_accuracy": 0.9, "curvature": curvature}
    drawing = draw_tracking({f"run-{number}": [record] for number in range(6)}, {})
    assert len(drawing.rows) == 6 * (1 + 13 + 1)
    assert len(drawing.figure.axes[0].lines) == 6 * (1 + 13)


def test_a_study_of_more_coefficients_than_colours_is_drawn() -> None:
    layer = {"name": "fc1", "input_norm2": 2.0, "top": 3.0}
    seed = {"round": 1, "group": "{}", "seed": 0, "zeta_logits": 0.0, "measures": {"layers": [layer]}}
    subjects = [{**seed, "zeta": zeta / 10, "checkpoint": f"{zeta}.pt"} for zeta in range(13)]
    drawing = draw_theory_scatter({"subjects": subjects, "versions": {}})
    assert [row["zeta"] for row in drawing.rows] == [zeta / 10 for zeta in range(13)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("points", [3, 5])  # between few points nothing is smoothed
@pytest.mark.parametrize("odd", [0.0, -2.0, None, math.inf, 1e38, 0.5])
def test_a_surface_of_any_losses_is_drawn(odd: float | None, points: int) -> None:
    losses: list[list[float | None]] = [[0.5] * points for _ in range(points)]
    losses[0][1] = odd
    place = np.linspace(-1, 1, points).tolist()
    data = {"dataset": "digits", "split": "train", "samples": 500}
    saved = {"checkpoint": "run/final.pt", "data": data, "versions": {}, "a": place, "b": place, "losses": losses}
    drawing = draw_loss_surfaces([saved])
    assert drawing.rows[1]["loss"] == (None if odd == math.inf else odd)
    assert drawing.files()["png"]
    with pytest.raises(MissingResultsError, match="no loss around the model is a finite number"):
        draw_loss_surfaces([{**saved, "losses": [[None] * points] * points}])


def test_eigenvalues_that_did_not_converge_are_hollow(results: Path) -> None:
    for path in (results / "fedavg-dirichlet-0.3-s0").glob("round-*.eigs.json"):
        content = json.loads(path.read_text())
        content["layers"][0]["eigenvalues"][0]["converged"] = False
        path.write_text(json.dumps(content))
    rows = [row for row in FIGURES["training"].draw(read_results(results)).rows if not row["converged"]]
    assert [(row["run"], row["round"], row["block"]) for row in rows] == [("fedavg-dirichlet-0.3-s0", 10, "conv1")]
    _, axes = plt.subplots()
    entries = [{"value": 1.0, "converged": True}, {"value": 2.0, "converged": False}, {"value": 3.0}]
    assert ring(axes, [1, 2, 3], entries, "k")
    assert [(line.get_xdata(), line.get_ydata(), line.get_markerfacecolor()) for line in axes.lines] == [
        ([2], [2.0], "white")
    ]
    plt.close()


def test_a_scatter_of_layers_says_what_is_not_above_zero(results: Path) -> None:
    tops = {path: json.loads(path.read_text()) for path in results.glob("*/final.eigs.json")}
    drawn = FIGURES["layers"].draw(read_results(results))
    assert drawn.figure.axes[0].get_title() == ""
    path = results / "fedavg-dirichlet-0.3-s0" / "final.eigs.json"
    tops[path]["layers"][0]["eigenvalues"][0]["value"] = -1.0
    tops[path]["layers"][1]["input_norm2"] = 0.0
    path.write_text(json.dumps(tops[path]))
    fewer = FIGURES["layers"].draw(read_results(results))
    found = len(drawn.rows)
    assert len(fewer.rows) == found - 2
    assert fewer.figure.axes[0].get_title() == f"2 of {found} marks are not above 0 and left out"
    for path, content in tops.items():
        for layer in content["layers"]:
            layer["eigenvalues"][0]["value"] = 0.0
        path.write_text(json.dumps(content))
    with pytest.raises(MissingResultsError, match="no layer has an activation norm and an eigenvalue above 0"):
        FIGURES["layers"].draw(read_results(results))


def test_a_study_s_scatter_says_what_is_not_above_zero() -> None:
    layers = [{"name": name, "input_norm2": 2.0, "top": top} for name, top in (("fc1", 3.0), ("fc2", -1.0))]
    subject = {"checkpoint": "a.pt", "group": "g", "round": 1, "zeta": 0.1, "zeta_logits": 0.0, "seed": 0}
    drawn = draw_theory_scatter({"subjects": [{**subject, "measures": {"layers": layers}}], "versions": {}})
    assert [row["layer"] for row in drawn.rows] == ["fc1"]
    assert drawn.figure.axes[0].get_title() == "1 of 2 marks are not above 0 and left out"


def test_the_command_lists_draws_and_names_what_it_skipped(
    flatlab: Command, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in [*results.glob("*/final.*.json"), *results.glob("*/round-*.json")]:
        path.unlink()
    assert flatlab("figures", "--list") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in FIGURES)
    left = [results / "figures" / ".zeta.png.ab12.part", results / "tables" / ".x.csv.ab12.part"]  # by a killed process
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert flatlab("figures", str(results), "--json", str(tmp_path / "f.json")) == 0
    assert not any(file.exists() for file in left)
    said = capsys.readouterr().out
    assert "figure density skipped: no two runs" in said
    written = json.loads((tmp_path / "f.json").read_text())
    assert set(written["figures"]) == {"accuracy", "zeta"}
    assert set(written["skipped"]) == {f"figure {name}" for name in set(FIGURES) - {"accuracy", "zeta"}} | {
        "table top_eigenvalue",
        "table trace",
    }
    assert all(Path(path).exists() for paths in written["figures"].values() for path in paths)
    assert flatlab("figures") == 2
    assert flatlab("figures", str(tmp_path / "none")) == 2


def study_of(*runs: tuple[float, float, float]) -> dict[str, Any]:
    """What study.json has of runs with these coefficients (zeta, of the logits) and top eigenvalues."""
    subjects = [
        {"round": 1, "group": "{}", "seed": 0, "zeta": zeta, "zeta_logits": logits,
         "measures": {"top": top, "layers": [{"name": "fc1", "top": top}]}}
        for zeta, logits, top in runs
    ]  # fmt: skip
    return {"subjects": subjects, "versions": {}}


def test_a_study_without_runs_that_nothing_is_added_to_has_no_heatmap() -> None:
    with pytest.raises(MissingResultsError, match="no run is without MAN"):
        draw_theory_heatmap(study_of((0.1, 0.0, 2.0), (0.1, 2.0, 1.0)))


def test_a_heatmap_leaves_out_what_has_no_logarithm() -> None:
    drawn = draw_theory_heatmap(study_of((0.0, 0.0, 2.0), (0.1, 0.0, 0.0), (0.5, 0.0, 1.0)))
    ratios = {row["zeta"]: row["ratio"] for row in drawn.rows if row["layer"] == "fc1"}
    assert ratios == {0.0: 1.0, 0.1: pytest.approx(float("nan"), nan_ok=True), 0.5: 0.5}


def test_one_batch_far_away_does_not_make_a_million_bars() -> None:
    values = [[np.exp(-12.0 - 0.01 * i)] for i in range(100)] + [[3.0]]
    origin = {"checkpoint": "run/final.pt", "versions": {"torch": "2.13.0"}, "batch_size": 5}
    data = {"dataset": "digits", "split": "train", "samples": 500}
    whole = {"eigenvalues": [{"value": 8.0}]}
    saved = {**origin, "data": data, "global": whole, "values": values, "residuals": values}
    figure = draw_batch_spectrum([saved]).figure
    assert len(figure.axes[0].patches) < 100


@pytest.mark.parametrize("odd", ["line", "eigenvectors"])
def test_a_line_and_maps_along_eigenvectors_are_no_maps_of_random_directions(odd: str, results: Path) -> None:
    for path in results.glob("*/final.surface.json"):
        saved = json.loads(path.read_text())
        line = {"b": [0.0], "losses": [values[:1] for values in saved["losses"]]}
        saved |= line if odd == "line" else {"eigenvalues": [{"value": 2.0}, {"value": 1.0}]}
        path.write_text(json.dumps(saved))
    with pytest.raises(MissingResultsError, match=r"have final\.surface\.json of a plane"):
        FIGURES["surface"].draw(read_results(results))


def test_a_legend_names_layers_that_begin_with_an_underscore() -> None:
    value = {"value": 4.0, "converged": True}
    record = {"round": 1, "test_accuracy": 0.9, "curvature": {"global": value, "layers": {"_conv": value, "fc": value}}}
    drawing = draw_tracking({"_run": [record], "other": [record]}, {})
    legends = [legend for axes in drawing.figure.axes if (legend := axes.get_legend())]
    named = [text.get_text() for legend in legends for text in legend.get_texts()]
    assert named == [f"{name} ({run})" for run in ("_run", "other") for name in ("network", "_conv", "fc")]
