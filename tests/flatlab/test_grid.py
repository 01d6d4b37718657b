"""Grids: what cells a TOML file stands for, and that every mistake in it is named."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatlab.errors import UsageError
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.config import make_config
from flatlab.federated.config_file import write_config
from flatlab.federated.partition.names import partition_fields, partition_name
from flatlab.federated.presets import preset_fields
from flatlab.federated.request import read_fields
from flatlab.grid.plan import (
    Grid,
    grid_cells,
    parse_grid,
    read_grid_text,
    require_named_code,
)
from flatlab.grid.reproduction import Where, read_reproduction
from flatlab.grid.shipped import shipped_grids

GRIDS_DOCUMENT = Path(__file__).parents[2] / "docs" / "grids.md"

GRID = """
title = "small"
[common]
rounds = 2
[axes]
algorithms = ["fedavg", "fedsam"]
partitions = ["dirichlet-0.3", "iid"]
seeds = [0, 1]
"""


@pytest.mark.parametrize("name", shipped_grids())
def test_shipped_grids_are_methods_times_partitions_times_seeds(name: str) -> None:
    grid = parse_grid(read_grid_text(name), name)
    cells = {cell.name: cell for cell in grid_cells(grid)}
    axes, default = grid.axes, next(iter(cells.values())).config.zeta
    further = {zeta for zeta in grid.sensitivity.zetas if zeta not in (0, default)}
    expected = len(axes.algorithms) * len(axes.man) * len(axes.partitions) * len(axes.seeds)
    assert len(cells) == expected + len(further) * len(axes.seeds)
    assert all({"eigs", "trace"} <= set(cell.kinds) for cell in cells.values())
    assert sum("surface" in cell.kinds for cell in cells.values()) == 2  # one run without, one with MAN


def test_the_small_grid_is_the_paper_s_preset_cut_down() -> None:
    cells = {cell.name: cell for cell in grid_cells(parse_grid(read_grid_text("cifar100-small"), "x"))}
    words = ["rounds=40", "train_samples=5000", "test_samples=2000", "batch_size=20", "eval_every=5"]
    words += ["checkpoint_every=20", "seed=2"]
    options = {"algorithm": "feddyn", "man": True}
    trained = read_fields(None, "cifar100-dir0.3", options, words, resume=False, out=None)
    assert cells["feddyn-man-s2"].config == trained


def test_the_document_speaks_of_these_grids() -> None:
    document = GRIDS_DOCUMENT.read_text()
    listed = {name: int(count) for name, count in re.findall(r"^\| `([\w-]+)` \|.*\| (\d+) \|", document, re.MULTILINE)}
    assert listed == {name: len(grid_cells(parse_grid(read_grid_text(name), name))) for name in shipped_grids()}
    (example,) = re.findall(r"```toml\n(.*?)```", document, re.DOTALL)
    grid = parse_grid(example, "example")
    assert len(grid_cells(grid)) == 2 * 2 * 2 * 3 + 2 * 3
    assert set(Grid.model_fields) == set(tomllib.loads(example))  # every part of a grid is shown


def test_a_cell_keeps_the_hyperparameters_that_the_paper_tuned_apart() -> None:
    cells = {cell.name: cell.config for cell in grid_cells(parse_grid(read_grid_text("tiny-imagenet"), "x"))}
    assert cells["fedsam-iid-s0"].hyper["rho"] == 0.03
    assert cells["fedsam-man-iid-s0"].hyper["rho"] == 0.01
    assert cells["fedsam-man-dirichlet-0.6-s0"].hyper["rho"] == 0.05
    assert cells["fedsam-man-dirichlet-0.6-s0"].delta == 0.6


def test_what_the_paper_tuned_is_kept_however_the_algorithm_is_spelled() -> None:
    assert preset_fields("tiny-imagenet-iid", "FedSAM", man=False)["hyper"] == {"rho": 0.03}
    text = read_grid_text("tiny-imagenet").replace('"fedsam"', '"FedSAM"')
    cells = {cell.name: cell.config for cell in grid_cells(parse_grid(text, "x"))}
    assert (cells["FedSAM-iid-s0"].algorithm, cells["FedSAM-iid-s0"].hyper["rho"]) == ("fedsam", 0.03)
    assert cells["FedSAM-man-iid-s0"].hyper["rho"] == 0.01
    options = {"algorithm": "FedSAM", "man": True}
    assert read_fields(None, "tiny-imagenet-iid", options, [], resume=False, out=None).hyper["rho"] == 0.01


def test_a_resumed_run_keeps_its_hyperparameters_however_the_algorithm_is_spelled(tmp_path: Path) -> None:
    write_config(tmp_path / "config.toml", make_config({"algorithm": "fedsam", "hyper": {"rho": 0.7}}, "test"))
    asked = read_fields(None, None, {"algorithm": "FedSAM"}, [], resume=True, out=tmp_path)
    assert asked.hyper["rho"] == 0.7


@pytest.mark.parametrize(
    ("edit", "twice"),
    [
        (('"fedavg"', '"FedSAM"'), "as FedSAM-dirichlet-0.3-s0 and as fedsam-dirichlet-0.3-s0"),
        (('"iid"', '"dirichlet-0.30"'), "as fedavg-dirichlet-0.3-s0 and as fedavg-dirichlet-0.30-s0"),
    ],
)
def test_one_run_under_two_names_is_refused_before_it_is_trained_twice(edit: tuple[str, str], twice: str) -> None:
    with pytest.raises(UsageError, match=f"has one run twice, {twice}"):
        parse_grid(GRID.replace(*edit), "small")


def test_hyperparameters_of_one_algorithm(tmp_path: Path) -> None:
    """They win over those of all, and over the preset's."""
    text = 'preset = "cifar100"\ntitle = "small"\n[common]\nhyper = {rho = 0.5}\n[hyper.fedsam]\nrho = 0.25\n[axes]\n'
    axes = 'algorithms = ["fedsam", "fedasam"]\nman = [false]\npartitions = ["iid"]\nseeds = [0]\n'
    found = {cell.name: cell.config.hyper["rho"] for cell in grid_cells(parse_grid(text + axes, "small"))}
    assert found == {"fedsam-s0": 0.25, "fedasam-s0": 0.5}
    (tmp_path / "g.toml").write_text(text + axes)
    asked = read_reproduction(str(tmp_path / "g.toml"), Where(device="cpu"), settings=["rho=0.125"])  # of every cell
    assert {cell.config.hyper["rho"] for cell in asked.cells} == {0.125}
    (tmp_path / "g.toml").write_text(text + axes.replace(', "fedasam"', ""))
    with pytest.raises(UsageError, match=r"hyper\.rho has no effect: \[hyper\] gives each algorithm its own"):
        read_reproduction(str(tmp_path / "g.toml"), Where(device="cpu"))
    for name in ("flattest", "flattest-cifar100-small"):  # as long a part of the rounds as at its source
        for cell in grid_cells(parse_grid(read_grid_text(name), name)):
            if cell.config.algorithm == "fedgloss":
                assert cell.config.hyper["warmup"] == 0.75 * cell.config.rounds


def test_parts_of_man_are_of_the_cells_with_man() -> None:
    parts = 'rounds = 2\nzeta_logits = 0.1\nman_layers = ["fc1"]'
    for cell in grid_cells(parse_grid(GRID.replace("rounds = 2", parts), "small")):
        assert cell.config.zeta_logits == (0.1 if cell.config.man else 0.0)
        assert cell.config.man_layers == (("fc1",) if cell.config.man else ())
    with pytest.raises(UsageError, match=r"zeta_logits = 0.1 is part of MAN, which is off"):
        parse_grid(GRID.replace("rounds = 2", parts).replace("[axes]", "[axes]\nman = [false]"), "small")


def test_sensitivity_adds_only_what_the_grid_does_not_have() -> None:
    grid = parse_grid(GRID + "[sensitivity]\nzetas = [0.0, 0.05, 0.15]\n", "x")
    names = [cell.name for cell in grid_cells(grid)]
    assert len(names) == len(set(names)) == 2 * 2 * 2 * 2 + 2
    further = [cell for cell in grid_cells(grid) if "zeta" in cell.name]
    assert [cell.name for cell in further] == [
        "fedavg-man-zeta0.05-dirichlet-0.3-s0",
        "fedavg-man-zeta0.05-dirichlet-0.3-s1",
    ]
    assert all(cell.config.man and cell.config.zeta == 0.05 for cell in further)


def test_zetas_that_agree_to_six_digits_are_two_runs() -> None:
    zetas = [0.05, 0.05000001, 0.05, 0.15000001]
    cells = grid_cells(parse_grid(GRID + f"[sensitivity]\nzetas = {zetas}\n", "x"))
    further = {cell.name: cell.config.zeta for cell in cells if cell.name.startswith("fedavg-man-zeta")}
    assert list(further.values()) == [0.05, 0.05000001, 0.15000001] * 2
    assert "fedavg-man-zeta0.05000001-dirichlet-0.3-s0" in further


def test_two_runs_of_one_name_are_refused_and_none_is_left_out() -> None:
    with pytest.raises(UsageError, match=r"two different runs of one name, fedavg-man-dirichlet-0\.3-s0: rename one"):
        parse_grid(GRID.replace("fedsam", "fedavg:man"), "small")


@given(
    algorithms=st.lists(st.sampled_from(sorted(ALGORITHMS)), min_size=1, unique=True),
    deltas=st.lists(st.sampled_from([0.01, 0.3, 0.6, 1.5]), unique=True),
    iid=st.booleans(),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
)
def test_every_combination_has_one_cell_of_its_own(
    algorithms: list[str], deltas: list[float], iid: bool, seeds: list[int]
) -> None:
    partitions = [f"dirichlet-{delta}" for delta in deltas] + ["iid"] * (iid or not deltas)
    text = f'title = "t"\n[axes]\nalgorithms = {algorithms}\npartitions = {partitions}\nseeds = {seeds}\n'
    cells = grid_cells(parse_grid(text, "x"))
    assert len({cell.name for cell in cells}) == len(cells)
    described = {(c.config.algorithm, c.config.man, partition_name(c.config), c.config.seed) for c in cells}
    assert described == {(a, m, p, s) for a in algorithms for m in (False, True) for p in partitions for s in seeds}


def test_partitions_have_one_name() -> None:
    assert partition_fields("iid") == {"partition": "iid"}
    assert partition_fields("dirichlet-0.6") == {"partition": "dirichlet", "delta": 0.6}
    assert partition_fields("classes-2") == {"partition": "classes", "classes_per_client": 2}
    assert partition_fields("lognormal-sizes-1.5") == {"partition": "lognormal-sizes", "sigma": 1.5}
    assert partition_fields("dirichlet-1e-3") == {"partition": "dirichlet", "delta": 1e-3}
    for delta in (0.3, 0.3000000001, 1e-7, 123456.5):
        config = make_config({"delta": delta})
        assert partition_fields(partition_name(config)) == {"partition": "dirichlet", "delta": delta}
    for wrong in ("classes", "file-1", "column-2", "dirichlet", "dirichlet-x", "pareto-1", "iid-0.3"):
        with pytest.raises(ValueError, match="dirichlet-<delta>"):
            partition_fields(wrong)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("title", "titel"), "titel does not fit: there is no such field"),
        (("[axes]", "[axes"), "not valid TOML"),
        (
            ("[axes]", "[hyper.fedprox]\nmu = 1\n[axes]"),
            "hyperparameters of 'fedprox', which is none of its algorithms",
        ),
        (("[axes]", "[hyper.fedsam]\nmu = 1\n[axes]"), "fedsam has no hyperparameter 'mu'"),
        (("[axes]", "[hyper]\nfedsam = 1\n[axes]"), "hyper.fedsam does not fit"),
        (('"iid"', '"pareto"'), "'pareto'"),
        (('"fedsam"', '"fedsum"'), "algorithm = 'fedsum'"),
        (("rounds = 2", "rounds = 0"), "rounds = 0"),
        (("rounds = 2", "round = 2"), "Unknown field 'round'"),
        (("seeds = [0, 1]", "seeds = []"), "axes.seeds does not fit"),
        (("seeds = [0, 1]", "seeds = [0.5]"), "axes.seeds.0 does not fit"),
        (("[common]", "target_accuracy = 95\n[common]"), "target_accuracy does not fit"),
        (("[axes]", "train_samples = 499\n[axes]"), "500 training samples ([measure] samples), and its runs have 499"),
    ],
)
def test_a_mistake_is_named_in_one_sentence(edit: tuple[str, str], said: str) -> None:
    with pytest.raises(UsageError, match="small") as caught:
        parse_grid(GRID.replace(*edit), "small")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "axis"),
    [
        ('algorithm = "fedsam"', "algorithms"),
        ('partition = "iid"', "partitions"),
        ("delta = 0.6", "partitions"),
        ("man = true", "man"),
        ("seed = 5", "seeds"),
    ],
)
def test_what_the_axes_say_is_not_set_for_every_cell(setting: str, axis: str, tmp_path: Path) -> None:
    said = rf"sets {setting.split()[0]} for every cell, and its axes say it: set it in \[axes\], by {axis}"
    with pytest.raises(UsageError, match=said):
        parse_grid(GRID.replace("rounds = 2", f"rounds = 2\n{setting}"), "small")
    (tmp_path / "g.toml").write_text(GRID)
    with pytest.raises(UsageError, match=said):
        read_reproduction(str(tmp_path / "g.toml"), Where(device="cpu"), settings=[setting.replace(" ", "")])


@pytest.mark.parametrize(
    ("model", "dataset", "algorithms", "option"),
    [
        ("mine:net", None, (), "--model mine:net"),
        (None, "mine:data", (), "--dataset mine:data"),
        (None, None, ("fedsam", "fedprox"), "--algorithm fedprox"),
    ],
)
def test_what_a_grid_does_not_name_is_not_let_run(
    model: str | None, dataset: str | None, algorithms: Sequence[str], option: str
) -> None:
    with pytest.raises(UsageError, match=f"{option} has no effect: it lets code run that the grid small names"):
        require_named_code(parse_grid(GRID, "small"), model, dataset, algorithms, "small")


def test_an_unknown_grid_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="toy, or a TOML file"):
        read_grid_text(str(tmp_path / "none.toml"))
