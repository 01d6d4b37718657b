"""The pictures of `flatlab verify` and of batches: what did not converge, what is paired, and whose each panel is."""

from typing import Any

import pytest

from figures.batch_spectrum import draw_batch_spectrum
from figures.client_curvature import draw_client_curvature
from figures.drawing import Drawing
from figures.theory_chain import draw_theory_chain
from figures.theory_heatmap import draw_theory_heatmap
from figures.theory_scatter import draw_theory_scatter
from figures.unconverged import MEANING

DATA = {"dataset": "digits", "split": "train", "samples": 500}
SAVED = {"checkpoint": "run/final.pt", "data": DATA, "versions": {"torch": "2.13.0"}}


def subject(zeta: float, seed: int, top: float, doubt: str = "", group: str = "{}") -> dict[str, Any]:
    measures = {
        "top": top,
        "layers": [{"name": "fc1", "input_norm2": 2.0, "top": top}],
        "doubts": {"λmax of fc1": doubt} if doubt else {},
    }
    own = {"checkpoint": f"{zeta}-{seed}.pt", "group": group, "round": 1, "seed": seed}
    return {**own, "zeta": zeta, "zeta_logits": 0.0, "measures": measures}


def study(*subjects: dict[str, Any]) -> dict[str, Any]:
    return {"subjects": subjects, "versions": {}}


def title(drawing: Drawing) -> str:
    return drawing.figure.axes[0].get_title()


def test_a_heatmap_divides_seed_by_seed() -> None:
    drawn = draw_theory_heatmap(
        study(subject(0.0, 0, 2.0), subject(0.0, 1, 200.0), subject(0.1, 0, 1.0), subject(0.1, 2, 7.0))
    )
    (row,) = [row for row in drawn.rows if row["layer"] == "fc1" and row["zeta"] == 0.1]
    assert row["ratio"] == pytest.approx(0.5)  # of seed 0, which both have
    assert row["top"] == pytest.approx(7**0.5)
    assert row["seeds"] == 2


def test_a_heatmap_and_a_scatter_mark_what_did_not_converge() -> None:
    runs = study(subject(0.0, 0, 2.0), subject(0.1, 0, 1.0, doubt="!"))
    for drawn in (draw_theory_heatmap(runs), draw_theory_scatter(runs)):
        doubts = {(row["layer"], row["zeta"]): row["doubt"] for row in drawn.rows}
        assert doubts["fc1", 0.0] == ""
        assert doubts["fc1", 0.1] == "!"
        assert "! not converged" in title(drawn)
    assert "1 !" in {text.get_text() for text in draw_theory_heatmap(runs).figure.axes[0].texts}


def test_a_scatter_says_of_how_many_groups_it_is() -> None:
    drawn = draw_theory_scatter(study(subject(0.0, 0, 2.0), subject(0.0, 0, 1.0, group='{"algorithm": "fedsam"}')))
    assert title(drawn) == "2 groups of runs"
    assert drawn.provenance["configuration"] == '{}; {"algorithm": "fedsam"}'


def chain_of(folder: str, algorithm: str) -> dict[str, Any]:
    config = {"algorithm": algorithm, "dataset": "digits", "man": False, "zeta": 0.15}
    layer = {"name": "fc1", "top": [1.0, 1.0], "a1": [2.0, 2.0], "a2": [3.0, 3.0], "a3": None}
    run = {"config": config, "round": 60}
    return {"checkpoint": f"{folder}/final.pt", "versions": {}, "run": run, "layers": [layer]}


def test_panels_of_a_chain_are_told_apart() -> None:
    panels = draw_theory_chain([chain_of("a", "fedavg"), chain_of("b", "fedsam")]).figure.axes
    assert [axes.get_title() for axes in panels] == [
        "digits, FedAvg, without MAN, round 60",
        "digits, FedSAM, without MAN, round 60",
    ]
    panels = draw_theory_chain([chain_of("seed-0", "fedavg"), chain_of("seed-1", "fedavg")]).figure.axes
    assert [axes.get_title().splitlines()[0] for axes in panels] == ["seed-0", "seed-1"]


def test_batches_whose_eigenvalues_did_not_converge_are_counted() -> None:
    numbers = {"values": [[9.0], [8.5]], "residuals": [[0.01], [2.0]], "batch_size": 250}
    saved = {**SAVED, "global": {"eigenvalues": [{"value": 8.0}]}, **numbers}
    drawn = draw_batch_spectrum([{**saved, "converged": False, "each_converged": [[True], [False]]}])
    assert [row["converged"] for row in drawn.rows] == [True, False]
    assert title(drawn).endswith("\n1 not converged")
    before = draw_batch_spectrum([{**saved, "converged": False}])  # which of them, an older file does not say
    assert [row["converged"] for row in before.rows] == [None, None]
    assert "not converged" not in title(draw_batch_spectrum([saved]))


def test_the_line_of_all_clients_has_a_ring_where_it_did_not_converge() -> None:
    client = {"client": 0, "samples": 90, "eigenvalues": [{"value": 8.0, "residual": 0.01}]}
    saved = {**SAVED, "clients": [client], "statement_F": {"left": 5.0, "right": 6.0}}
    whole = {"value": 5.0, "residual": 1.0, "converged": False}
    assert MEANING in title(draw_client_curvature([{**saved, "global": {"eigenvalues": [whole]}}]))
    assert MEANING not in title(draw_client_curvature([saved]))
