"""Tables and figures over many methods: their ranks, what MAN changes in each, and which measures agree."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from figures.accuracy_curves import draw_accuracy_curves
from figures.curvature_bars import draw_curvature_bars
from figures.errors import MissingResultsError
from figures.finished_methods import finished_methods, unfinished_methods
from figures.man_table import man_table
from figures.method_tables import agreement_table, count_above_one, ranks_table
from figures.results import Result, Results
from flatlab.federated.config import make_config
from flatlab.federated.config_file import write_config
from flatlab.grid.plan import grid_cells, parse_grid
from flatlab.grid.saved_results import read_results
from flatlab.runs.checkpoint import Checkpoint, save_checkpoint

NAMES = ("fedavg", "fedprox", "scaffold", "fedsam", "fedasam", "feddyn", "feddc", "fedspeed", "fedavgm")


def result(at: int, man: bool, seed: int, change: float) -> Result:
    """Method number `at`: λ₁ is 2^at, times `change` under MAN, times what the seed makes of all; error likewise."""
    noise = (1, 1.1, 0.95)[seed] * (1 + 0.01 * ((3 * at + seed) % 4))
    top = 2.0**at * noise * (change if man else 1)
    config = make_config({"algorithm": NAMES[at], "man": man, "seed": seed, "rounds": 1})
    measured: dict[str, dict[str, Any]] = {
        "eigs": {"settings": {}, "global": {"eigenvalues": [{"value": top}]}},
        "trace": {"settings": {}, "trace": {"value": 5 * top}},
    }
    records = ({"round": 1, "test_accuracy": 0.9 - 0.01 * at - 0.001 * seed - 0.02 * man * (at == 3)},)
    return Result(Path(f"{at}{man}{seed}"), config, "iid", "iid", records, measured, (), True, "")


def results(methods: int = 9, change: float = 0.5, seeds: int = 3) -> Results:
    runs = (result(at, man, s, change) for at in range(methods) for man in (False, True) for s in range(seeds))
    return Results(Path(), None, tuple(runs))


def test_ranks_are_by_ratios_where_numbers_vary_by_factors() -> None:
    table = ranks_table(results(change=0.25))
    assert table.columns == ("partition", "method", "error", "λ₁", "trace")
    by = {(n["algorithm"], n["man"], n["measure"]): n for n in table.numbers}
    assert [by["fedavg", man, "λ₁"]["rank"] for man in (False, True)] == [3, 1]
    assert (by["fedavg", True, "λ₁"]["best"], by["fedavg", True, "λ₁"]["worst"]) == (1, 1)  # 0.25 told from 0.5
    assert by["fedavgm", False, "λ₁"]["rank"] == by["fedavgm", False, "trace"]["rank"] == 18
    assert by["fedavg", False, "λ₁"]["mean"] == pytest.approx((1.1 * 1.01 * 0.95 * 1.02) ** (1 / 3))
    assert any("λ₁ a factor of 1.0" in note for note in table.notes)


def test_eigenvalues_above_one_are_counted() -> None:
    """Five eigenvalues, which two probes hold at equal weights on average."""
    eigenvalues = [-2.0, 0.5, 1.0, 1.5, 9.0]
    density = {"size": 5, "nodes": [eigenvalues] * 2, "node_weights": [[0.4, 0, 0, 0.4, 0.2], [0, 0.4, 0.4, 0, 0.2]]}
    assert count_above_one(density) == pytest.approx(2)


def test_what_man_changes_with_its_interval() -> None:
    table = man_table(results())
    change = {(n["algorithm"], n["measure"]): n for n in table.numbers}
    for name in NAMES:
        assert change[name, "λ₁"]["change"] == pytest.approx(0.5)
        assert change[name, "λ₁"]["high"] < 1
    assert change["fedsam", "error"]["change"] == pytest.approx(2)
    assert change["fedavg", "error"]["change"] == pytest.approx(0, abs=1e-9)
    rows = {row[1]: row for row in table.rows}
    assert rows["FedAvg"][3] == "×0.500 [0.497, 0.503] -"
    assert rows["FedSAM"][2].endswith(" +")


def test_one_number_that_is_not_positive_makes_all_differences() -> None:
    table = man_table(results(change=-1.0))
    assert all(not n["ratio"] for n in table.numbers)


def test_measures_that_are_one_another_s_multiples_agree() -> None:
    table = agreement_table(results())
    numbers = {(n["one"], n["other"]): n for n in table.numbers}
    assert numbers["λ₁", "trace"]["spearman"] == pytest.approx(1)
    assert -1 <= numbers["error", "λ₁"]["low"] <= numbers["error", "λ₁"]["spearman"] < 1


@pytest.mark.parametrize(("few", "tables"), [(3, (ranks_table, man_table)), (7, (agreement_table,))])
def test_too_few_methods_or_seeds_are_no_comparison(few: int, tables: tuple[object, ...]) -> None:
    for made in (results(methods=few), results(seeds=1)):
        for table in tables:
            with pytest.raises(MissingResultsError, match="are finished"):
                table(made)  # type: ignore[operator]


def test_a_method_without_one_of_the_numbers_leaves_that_measure_out() -> None:
    whole = results()
    one = whole.runs[0]
    less = Results(Path(), None, (*whole.runs[1:], Result(**{**vars(one), "measured": {"eigs": one.measured["eigs"]}})))
    assert "trace" not in ranks_table(less).columns
    for table in (ranks_table(less), man_table(less), agreement_table(less)):
        assert f"trace is left out where runs lack it, or it is not finite: {one.name}." in table.notes
    assert not any("left out where runs lack" in note for note in ranks_table(whole).notes)
    assert ranks_table(less).numbers[0]["rank"] == ranks_table(whole).numbers[0]["rank"]


def test_a_method_that_collapsed_is_left_out_and_named() -> None:
    whole = results()
    broken = whole.runs[-1]  # FedAvgM with MAN at the last seed
    low = Result(**{**vars(broken), "records": ({"round": 1, "test_accuracy": 0.1},)})
    some = Results(Path(), None, (*whole.runs[:-1], low))
    table = ranks_table(some)
    assert "FedAvgM + MAN" not in {row[1] for row in table.rows}
    assert "FedAvgM" in {row[1] for row in table.rows}
    assert table.notes[-1] == "Left out, since a run's accuracy is below half the median: FedAvgM + MAN."
    assert "FedAvgM" not in {row[1] for row in man_table(some).rows}


def test_a_method_whose_last_evaluation_is_not_here_did_not_collapse() -> None:
    whole = results()
    cut = replace(whole.runs[-1], records=())
    table = ranks_table(Results(Path(), None, (*whole.runs[:-1], cut)))
    assert "FedAvgM + MAN" not in {row[1] for row in table.rows}
    assert table.notes[-1] == "Left out, since a run has no accuracy after its last round: FedAvgM + MAN."
    assert replace(cut, config=make_config({"rounds": 2}), records=whole.runs[-1].records).accuracy is None


def test_a_method_without_the_seeds_of_the_others_is_left_out_and_named() -> None:
    """FedAvgM with MAN is finished at seed 0 alone, so that no two seeds were common to all."""
    whole = results()
    some = Results(Path(), None, whole.runs[:-2])
    for table, at in ((ranks_table(some), "FedAvgM + MAN"), (man_table(some), "FedAvgM")):
        assert at not in {row[1] for row in table.rows}
        assert table.notes[-1] == "Left out, since a run at one of the seeds compared is not finished: FedAvgM + MAN."
    assert "FedAvgM" in {row[1] for row in ranks_table(some).rows}
    assert finished_methods(some, "iid")[1] == [0, 1, 2]
    assert agreement_table(some).rows


@pytest.mark.parametrize(
    ("of_four", "of_fifth", "left_out", "common"),
    [
        ([(0, 1), (0, 1, 2), (0, 1), (0, 1)], (2,), ["feddc"], [0, 1]),
        ([(0, 1, 2)] * 4, (0, 1), [], [0, 1]),  # more methods go before more seeds
        ([(0, 1, 2)] * 4, (1,), ["feddc"], [0, 1, 2]),
        ([(0, 1), (0, 1), (1, 2), (1, 2)], (1,), [], [1]),  # no comparison, and so nothing that it leaves out
    ],
)
def test_as_many_methods_as_can_be_are_kept_at_two_seeds(
    of_four: list[tuple[int, ...]], of_fifth: tuple[int, ...], left_out: list[str], common: list[int]
) -> None:
    names = ("fedavg", "fedprox", "fedsam", "feddyn", "feddc")
    seeds = zip(names, (*of_four, of_fifth), strict=True)
    some = Results(Path(), None, tuple(result(NAMES.index(name), False, s, 1) for name, of in seeds for s in of))
    assert unfinished_methods(some, "iid") == [(name, False) for name in left_out]
    assert finished_methods(some, "iid")[1] == common


def test_the_least_differences_are_those_of_each_partition() -> None:
    """Of the second partition, errors are spread less over the seeds: by the measure alone, not by a factor."""
    runs = results(methods=4).runs
    steady = ({"round": 1, "test_accuracy": 0.8},)
    other = [replace(run, row="dirichlet-0.3", partition="dirichlet-0.3", records=steady) for run in runs]
    (first,) = (note for note in ranks_table(results(methods=4)).notes if "told apart" in note)
    (both,) = (note for note in ranks_table(Results(Path(), None, (*runs, *other))).notes if "told apart" in note)
    alone = first.rpartition("on: ")[2].removesuffix(".")
    assert f"on: IID ({alone}), Dirichlet 0.3 (error 0.00; λ₁" in both


def test_measures_agree_by_the_means_that_ranks_are_by() -> None:
    """One seed of FedAvg's is so large that its arithmetic mean of λ₁, but not the geometric one, is the last."""
    whole = results()
    far = {"eigs": {"settings": {}, "global": {"eigenvalues": [{"value": 5000.0}]}}}
    runs = [replace(r, measured={**r.measured, **far}) if r.name == "0False1" else r for r in whole.runs]
    table = agreement_table(Results(Path(), None, tuple(runs)))
    (found,) = (n["spearman"] for n in table.numbers if (n["one"], n["other"]) == ("λ₁", "trace"))
    by = {(n["algorithm"], n["man"], n["measure"]): n for n in ranks_table(Results(Path(), None, tuple(runs))).numbers}
    places = [[by[name, man, m]["rank"] for name in NAMES for man in (False, True)] for m in ("λ₁", "trace")]
    assert found == pytest.approx(stats.spearmanr(*places).statistic)
    assert by["fedavg", False, "λ₁"]["rank"] < 18


def test_a_measure_by_which_all_methods_tie_agrees_with_none() -> None:
    steady = ({"round": 1, "test_accuracy": 0.8},)
    tied = Results(Path(), None, tuple(replace(run, records=steady) for run in results().runs))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = agreement_table(tied)
    assert {(n["one"], n["other"]) for n in table.numbers} == {("λ₁", "trace")}
    alone = [replace(run, measured={}) for run in tied.runs]
    with pytest.raises(MissingResultsError, match="no two measures are there by which the methods differ"):
        agreement_table(Results(Path(), None, tuple(alone)))


def test_figures_of_many_methods_break_their_line_and_have_no_empty_panel() -> None:
    whole = results()
    curves = draw_accuracy_curves(whole).figure
    assert [axes.get_title() for axes in curves.axes][6:] == ["FedDC", "FedSpeed", "FedAvgM"]
    assert [axes.get_xlabel() for axes in curves.axes] == [""] * 3 + ["round"] * 6
    assert [text.get_text() for text in curves.legends[0].get_texts()] == ["without MAN", "with MAN (ζ = 0.15)"]
    assert len(draw_curvature_bars(whole).figure.axes) == 2
    assert draw_curvature_bars(whole).figure.axes[0].get_yscale() == "log"
    no_trace = tuple(Result(**{**vars(run), "measured": {"eigs": run.measured["eigs"]}}) for run in whole.runs)
    assert len(draw_curvature_bars(Results(Path(), None, no_trace)).figure.axes) == 1


LOCAL_GRID = """
title = "Clients"
[common]
rounds = 2
model = "mlp"
[axes]
algorithms = ["fedavg", "fedprox", "fedsam", "feddyn"]
man = [false]
partitions = ["iid"]
seeds = [0, 1]
[measure]
keep_clients = [{kept}]
"""


@pytest.fixture
def clients_of_two_rounds(tmp_path: Path) -> Path:
    """A grid whose clients were measured after round 2, and of seed 1 after round 1 too, as it now asks."""
    (tmp_path / "grid.toml").write_text(LOCAL_GRID.format(kept=1))
    for at, cell in enumerate(grid_cells(parse_grid(LOCAL_GRID.format(kept=2), "test"))):
        folder = tmp_path / cell.name
        folder.mkdir()
        write_config(folder / "config.toml", cell.config)
        (folder / "metrics.jsonl").write_text('{"round": 1}\n{"round": 2, "test_accuracy": 0.5}\n')
        save_checkpoint(folder / "final.pt", Checkpoint(cell.config, 2, {}, {}, {}, {}))
        for round_ in (1, 2) if cell.config.seed else (2,):
            top = {"own_at_own": 10.0 * round_ + at, "whole_at_global": 1.0, "discrepancy": 0.0, "transfer": 0.0}
            made = {"data": {"dataset": "digits", "split": "train", "samples": 500}, "versions": {}}
            made |= {"run": {"config": cell.config.plain(), "round": round_}}
            content = {**made, "means": {"eigenvalue": top}, "distance": 1.0}
            (folder / f"clients-{round_:04}.local.json").write_text(json.dumps(content))
    return tmp_path


def tops(folder: Path) -> list[int]:
    """Of which round the clients' eigenvalues are that are read of each run."""
    found = (run.measured.get("local") for run in read_results(folder).runs)
    return [round(local["means"]["eigenvalue"]["own_at_own"] // 10) if local else 0 for local in found]


def test_clients_are_those_of_the_round_that_the_grid_names(clients_of_two_rounds: Path) -> None:
    assert tops(clients_of_two_rounds) == [0] * 4 + [1] * 4
    (clients_of_two_rounds / "grid.toml").write_text(LOCAL_GRID.format(kept="2, 1"))
    assert tops(clients_of_two_rounds) == [2] * 8


def test_clients_of_different_rounds_stand_in_no_table(clients_of_two_rounds: Path) -> None:
    (clients_of_two_rounds / "grid.toml").unlink()
    assert "local λ₁" in ranks_table(read_results(clients_of_two_rounds)).columns
    (clients_of_two_rounds / "fedsam-s1" / "clients-0002.local.json").unlink()
    said = r"clients-0002\.local\.json of \S+ was made with round 2, clients-0001\.local\.json of fedsam-s1 with 1:"
    with pytest.raises(MissingResultsError, match=said):
        ranks_table(read_results(clients_of_two_rounds))


def test_an_interval_over_two_seeds_may_reach_beyond_every_number() -> None:
    """One degree of freedom, 23 methods' correction, and seeds that lie a factor of e^5 apart."""
    whole = results(methods=9, seeds=2)
    wild = [run for run in whole.runs if run.config.algorithm == "fedavgm" and run.config.man]
    tops = {run.config.seed: 1e-3 if run.config.seed else 1e12 for run in wild}
    eigs = {run.name: {"settings": {}, "global": {"eigenvalues": [{"value": tops[run.config.seed]}]}} for run in wild}
    runs = tuple(
        replace(run, measured={**run.measured, "eigs": eigs[run.name]}) if run in wild else run for run in whole.runs
    )
    table = man_table(Results(Path(), None, runs))
    row = next(n for n in table.numbers if (n["algorithm"], n["measure"]) == ("fedavgm", "λ₁"))
    assert row["unsteady"]
    assert row["high"] == float("inf")
    assert row["low"] == 0
    assert next(cells for cells in table.rows if cells[1] == "FedAvgM")[3].endswith(", inf]")


def test_a_density_of_before_weights_were_saved_counts_nothing() -> None:
    whole = results()
    density: dict[str, dict[str, Any]] = {"density": {"settings": {}, "size": 5, "nodes": [[1.0]]}}
    old = tuple(replace(run, measured={**run.measured, **density}) for run in whole.runs)
    assert "above 1" not in ranks_table(Results(Path(), None, old)).columns
