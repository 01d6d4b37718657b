"""Tables: their numbers from the runs, the published ones beside them, and the three formats."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from figures.formats import as_csv, as_latex, as_markdown, table_files
from figures.gallery import draw_figures
from figures.labels import algorithm_label, man_label
from figures.paper import published
from figures.rounds_table import rounds_to_target
from figures.tables import make_tables
from flatlab.errors import UsageError
from flatlab.grid.saved_results import read_results


def test_accuracy_is_the_mean_over_seeds_with_the_paired_gain_and_the_paper_s_beside(results: Path) -> None:
    tables, skipped = make_tables(read_results(results))
    assert not skipped
    accuracy = tables[0]
    assert accuracy.columns[:5] == ("partition", "algorithm", "without MAN", "with MAN", "gain [95 %]")
    assert accuracy.columns[5:] == ("paper, without", "paper, with", "paper, gain")
    assert [row[:2] for row in accuracy.rows] == [
        ("Dirichlet 0.3", "FedAvg"), ("Dirichlet 0.3", "FedSAM"), ("IID", "FedAvg"), ("IID", "FedSAM")
    ]  # fmt: skip
    # made up: 48, 49, 50 % without MAN and 54, 55, 56 % with it; the gain is the same at every seed,
    # whose spread is then that of rounding to the 1 % by which these numbers differ
    assert accuracy.rows[0][2:] == ("49.00 ± 1.00", "55.00 ± 1.00", "+6.00 [+5.28, +6.72]", "49.9", "52", "+2.1")
    assert accuracy.rows[3][5:] == ("41.31", "52.85", "+11.54")
    assert any("WACV 2024" in note for note in accuracy.notes)
    assert "After 20 rounds, of the mean over all clients of each one's last model." in accuracy.notes


def test_curvature_tables_pair_by_seed(results: Path) -> None:
    top = next(table for table in make_tables(read_results(results))[0] if table.name == "top_eigenvalue")
    without, with_ = [50.0, 51.0, 52.0], [30.0, 32.0, 34.0]
    low, high = stats.ttest_rel(with_, without).confidence_interval(0.95)
    numbers = top.numbers[0]
    assert numbers["without_mean"] == pytest.approx(51)
    assert numbers["with_deviation"] == pytest.approx(np.std(with_, ddof=1))
    assert (numbers["difference_low"], numbers["difference_high"]) == pytest.approx((low, high))
    assert top.rows[0][2:] == ("51.0 ± 1.0", "32.0 ± 2.0", "−19.0 [−21.5, −16.5]", "51.49", "43.8", "−7.69")
    assert top.rows[2][5:] == ("", "", "")  # the paper has no eigenvalues on IID data


def test_eigenvalues_that_did_not_converge_are_named(results: Path) -> None:
    path = results / "fedsam-iid-s1" / "final.eigs.json"
    content = json.loads(path.read_text())
    content["global"]["eigenvalues"][0]["converged"] = False
    path.write_text(json.dumps(content))
    top = next(table for table in make_tables(read_results(results))[0] if table.name == "top_eigenvalue")
    assert "! not converged, or a larger one is not excluded: fedsam-iid-s1." in top.notes


def test_seeds_that_are_missing_are_counted(results: Path) -> None:
    for path in (results / "fedavg-man-dirichlet-0.3-s1").glob("final.*"):
        path.unlink()
    shutil.rmtree(results / "fedsam-iid-s0")
    shutil.rmtree(results / "fedsam-iid-s1")
    read = read_results(results)
    assert read.absent == {"fedsam-iid-s0": "not begun.", "fedsam-iid-s1": "not begun."}
    accuracy = make_tables(read)[0][0]
    assert accuracy.rows[0][2:5] == ("49.00 ± 1.00", "55.00 ± 1.41 (2)", "+6.00 [+0.81, +11.19]")
    assert accuracy.rows[3][2:5] == ("52.00 (1)", "57.00 ± 1.00", "+6.00")


def test_a_coefficient_of_the_sensitivity_never_stands_for_the_grid_s(results: Path) -> None:
    shutil.rmtree(results / "fedavg-man-dirichlet-0.3-s1")  # three runs at zeta 0.5 are left, and two at the usual one
    read = read_results(results)
    assert read.zetas == [0.15]
    table = make_tables(read)[0][0]
    assert table.rows[0][3] == "55.00 ± 1.41 (2)"
    for run in results.glob("fed*-man-*"):
        if "zeta" not in run.name:
            shutil.rmtree(run)
    read = read_results(results)
    assert (read.zetas, make_tables(read)[0][0].rows[0][3]) == ([], "")
    assert not any("zeta" in note for note in make_tables(read)[0][0].notes)
    assert man_label(True, read.zetas) == "with MAN"


def test_rounds_to_target_are_medians_and_say_where_it_is_not_reached(results: Path) -> None:
    read = read_results(results)
    rounds = next(table for table in make_tables(read)[0] if table.name == "rounds")
    for run in read.runs:
        first = rounds_to_target(run, 0.5, at=range(21))
        assert first == next((t for t, accuracy in run.curve if accuracy >= 0.5), float("inf"))
    # without MAN the best seed of FedAvg ends at exactly 50 %
    assert rounds.rows[0] == ("Dirichlet 0.3", "FedAvg", "20+ (1 of 3)", "15", "500+", "206")
    assert rounds.rows[1][2:4] == ("20", "10")
    assert rounds.title == "Communication rounds to 50% test accuracy"
    assert any("evaluated" in note.lower() for note in rounds.notes)


def test_without_a_grid_file_any_folder_of_runs_is_read(results: Path) -> None:
    (results / "grid.toml").unlink()
    tables, skipped = make_tables(read_results(results))
    assert [table.name for table in tables] == ["accuracy", "top_eigenvalue", "trace"]
    assert skipped == {"rounds": "the grid states no target_accuracy"}
    assert tables[0].rows[0][2] == "49.00 ± 1.00"


def test_the_formats_hold_the_same_table(results: Path, tmp_path: Path) -> None:
    table = make_tables(read_results(results))[0][1]
    lines = [line for line in as_markdown(table).splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert cells[0] == table.columns
    assert tuple(cells[2:]) == table.rows

    read = list(csv.DictReader(io.StringIO(as_csv(table.numbers))))
    assert [float(row["with_mean"]) for row in read] == [row["with_mean"] for row in table.numbers]

    latex = as_latex(table)
    assert latex.count(r"\midrule") == 2  # below the head, and between the partitions
    assert r"51.0 $\pm$ 1.0 & 32.0 $\pm$ 2.0 & $-$19.0 [$-$21.5, $-$16.5] & 51.49 & 43.8 & $-$7.69 \\" in latex
    body = latex[latex.index(r"\toprule") :]
    assert all(line.count("&") == 7 for line in body.splitlines() if line.endswith(r"\\"))
    assert "%" not in latex.replace(r"\%", "")

    assert table_files(table) == {
        "md": as_markdown(table).encode(),
        "csv": as_csv(table.numbers).encode(),
        "tex": latex.encode(),
    }


def test_the_published_numbers_are_all_there() -> None:
    methods = [(a, man) for a in ("fedavg", "fedsam", "feddyn", "feddc", "fedspeed") for man in (False, True)]
    for dataset in ("cifar100", "tiny-imagenet"):
        for partition in ("dirichlet-0.3", "dirichlet-0.6", "iid"):
            assert all(published("accuracy", dataset, partition, a, man) for a, man in methods)
    assert published("rounds", "cifar100", "iid", "fedavg", False) == "500+"
    assert published("trace", "cifar100", "dirichlet-0.3", "fedavg", False) == "8744"
    assert published("trace", "cifar100", "iid", "fedavg", False) is None


def test_a_folder_without_runs_and_a_damaged_measurement_are_one_sentence(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There are no runs in"):
        read_results(tmp_path / "nothing")
    damaged = results / "fedavg-iid-s0" / "final.eigs.json"
    damaged.write_text(json.dumps({})[:-1])
    with pytest.raises(UsageError, match="delete it and measure again"):
        read_results(results)


Change = Callable[..., None]


def rows_of(results: Path) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Without and with MAN, and the gain, by the row's names."""
    return {row[:2]: row[2:5] for row in make_tables(read_results(results))[0][0].rows}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"batch_size": 7}, "batch_size 7"),
        ({"hyper": {"rho": 0.7}}, "rho 0.7"),
        ({"rounds": 5}, "rounds 5"),
        ({"dataset": "fashion-mnist"}, "fashion-mnist"),
        ({"zeta_logits": 0.1}, "zeta_logits 0.1"),
    ],
)
def test_runs_that_differ_in_more_than_man_and_seed_have_rows_of_their_own(
    fields: dict[str, Any], named: str, results: Path, change: Change
) -> None:
    (results / "grid.toml").unlink()
    before = rows_of(results)
    change(results / "fedsam-man-iid-s1", **fields)
    after = rows_of(results)
    other = next(names for names in after if named in names[0] and names[1] == "FedSAM" and "IID" in names[0])
    assert after[other] == ("", "57.00 (1)", "")  # paired with nothing
    same = next(names for names in after if names[1] == "FedSAM" and "IID" in names[0] and names != other)
    assert after[same][0] == before["IID", "FedSAM"][0]
    assert after[same][1].endswith("(2)")
    drawn, skipped = draw_figures(read_results(results))
    assert "accuracy" in drawn
    assert not skipped


def test_runs_without_man_stand_beside_those_whose_man_has_further_parts(results: Path, change: Change) -> None:
    (results / "grid.toml").unlink()
    before = rows_of(results)
    for run in results.glob("fedsam-man-iid-*"):
        change(run, zeta_logits=0.1)
    after = rows_of(results)
    (row,) = (names for names in after if names[1] == "FedSAM" and "IID" in names[0])
    assert after[row] == before["IID", "FedSAM"]
    assert "zeta_logits 0.1" in row[0]


def test_a_row_is_not_named_after_what_its_split_s_name_says(results: Path, change: Change) -> None:
    """Whose fields the other splits do not use: Dirichlet 0.3 has a classes_per_client as well."""
    (results / "grid.toml").unlink()
    change(results / "fedsam-man-iid-s1", partition="classes", classes_per_client=3)
    change(results / "fedsam-man-iid-s2", partition="lognormal-sizes", sigma=0.5)
    assert {"Classes 3", "IID", "Dirichlet 0.3"} <= {names[0] for names in rows_of(results)}
    assert not [names for names in rows_of(results) if "_" in names[0] or "sigma" in names[0]]


def test_methods_of_ones_own_are_named_by_their_whole_modules() -> None:
    assert algorithm_label("first.mine:ALGORITHM") != algorithm_label("second.mine:ALGORITHM")


def test_a_run_that_is_there_twice_is_refused(results: Path) -> None:
    (results / "grid.toml").unlink()
    shutil.copytree(results / "fedavg-iid-s0", results / "copy")
    with pytest.raises(UsageError, match=r"copy and .*fedavg-iid-s0 hold the same run, of the same seed"):
        read_results(results)


def test_a_row_s_name_holds_every_digit_of_what_sets_it_apart(results: Path, change: Change) -> None:
    (results / "grid.toml").unlink()
    for seed, last in ((1, 7), (2, 8)):
        change(results / f"fedsam-man-iid-s{seed}", hidden=(*range(1, 200), last))
    names = [names for names in rows_of(results) if names[1] == "FedSAM" and "IID" in names[0]]
    assert len(names) == len(set(names)) == 3


@pytest.mark.parametrize("seed", [0, 1])
def test_runs_on_images_that_changed_under_one_name_are_refused(seed: int, results: Path, change: Change) -> None:
    change(results / "fedavg-iid-s0", data="a" * 16)
    other = f"fedavg-man-iid-s{seed}"
    change(results / other, data="b" * 16)
    with pytest.raises(UsageError, match=rf"fedavg-iid-s0 and .*{other} were trained on different images"):
        read_results(results)


@pytest.mark.parametrize("fields", [{"image_size": 16}, {"train_samples": 100}, {"holdout": 0.5}])
def test_runs_that_read_one_data_set_differently_have_rows_of_their_own(
    fields: dict[str, Any], results: Path, change: Change
) -> None:
    (results / "grid.toml").unlink()
    change(results / "fedavg-iid-s0", data="a" * 16)
    change(results / "fedavg-man-iid-s0", data="b" * 16, **fields)
    ((name, value),) = fields.items()
    assert rows_of(results)[f"IID, {name} {value}", "FedAvg"] == ("", "54.00 (1)", "")


def test_subsets_drawn_by_the_seed_are_no_change_of_the_data(results: Path, change: Change) -> None:
    (results / "grid.toml").unlink()
    for folder in results.iterdir():
        change(folder, data=folder.name[-1] * 16, train_samples=100)
    assert rows_of(results)["IID", "FedAvg"][2] == "+6.00 [+5.28, +6.72]"


def test_a_measurement_of_another_run_is_refused(results: Path) -> None:
    path = results / "fedavg-iid-s0" / "final.eigs.json"
    content = json.loads(path.read_text())
    content["run"]["config"]["rounds"] = 5
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"fedavg-iid-s0/final\.eigs\.json was not made of the run that is in"):
        read_results(results)


def test_a_finished_run_without_its_configuration_is_read_from_its_checkpoint(results: Path) -> None:
    before = {run.name: run.config for run in read_results(results).runs}
    (results / "fedavg-iid-s0" / "config.toml").unlink()
    for path in (results / "fedsam-iid-s0").glob("*.toml"):
        path.unlink()
    (results / "fedsam-iid-s0" / "final.pt").unlink()  # brought here without its weights: what was measured says it
    read = read_results(results)
    assert {run.name: run.config for run in read.runs} == before
    assert not read.absent
    (results / "grid.toml").write_text("")
    with pytest.raises(UsageError, match=r"grid\.toml, title does not fit: field required"):
        read_results(results)


def test_a_cell_that_the_grid_no_longer_describes_is_in_no_table(results: Path, change: Change) -> None:
    change(results / "fedsam-iid-s0", batch_size=7)
    read = read_results(results)
    assert list(read.absent) == ["fedsam-iid-s0"]
    assert "another batch_size (7; the grid says 50)" in read.absent["fedsam-iid-s0"]
    assert rows_of(results)["IID", "FedSAM"][0].endswith("(2)")
    for name in ("fedavg", "fedsam"):
        for folder in results.glob(f"{name}*"):
            change(folder, batch_size=7)
    with pytest.raises(UsageError, match="another batch_size"):
        read_results(results)


def test_the_precision_of_training_is_said(results: Path, change: Change) -> None:
    (results / "grid.toml").unlink()  # which describes no such run
    for run in results.glob("fedavg*"):
        change(run, precision="bf16")
    tables = {table.name: table for table in make_tables(read_results(results))[0]}
    assert any("Trained in bf16 or ieee;" in note for note in tables["accuracy"].notes)
