"""What a user asks for has an effect, is asked for once, and is checked before the training; or it is refused."""

from pathlib import Path
from typing import Any

import pytest

from flatlab.errors import UsageError
from flatlab.federated.config import make_config
from flatlab.federated.config_file import read_config, write_config
from flatlab.federated.execution import Execution
from flatlab.federated.presets import PRESETS, preset_fields
from flatlab.federated.request import read_fields, read_settings
from flatlab.grid.idle import require_effects
from flatlab.grid.plan import grid_cells, parse_grid, read_grid_text
from flatlab.grid.reproduction import Where, read_reproduction
from flatlab.grid.shipped import shipped_grids
from tests.command_line import flatlab

IDLE = [
    ({"partition": "shards", "delta": 5.0}, "delta = 5.0", "partition = dirichlet or dirichlet-sizes, not shards"),
    ({"partition": "iid", "delta": 0.1}, "delta = 0.1", "not iid"),
    ({"partition": "shards", "classes_per_client": 3}, "classes_per_client = 3", "partition = classes, not shards"),
    ({"shards_per_client": 3}, "shards_per_client = 3", "partition = shards, not dirichlet"),
    ({"sigma": 2.0}, "sigma = 2.0", "partition = lognormal-sizes, not dirichlet"),
    ({"model": "mym:f", "hidden": [5]}, "hidden = [5]", "model = mlp, not mym:f"),
    ({"dataset": "cifar100", "activation": "tanh"}, "activation = 'tanh'", "model = mlp, not cifar-cnn"),
    ({"man": True, "zeta": 0.0}, "man = true", "adds nothing"),
    ({"zeta": 0.5}, "zeta = 0.5", "add --man, or man = true"),
    ({"swa_every": 3}, "swa_every = 3", "set swa_start"),
]
"""Fields, which of them has no effect, and why."""

USED: list[dict[str, Any]] = [
    {"partition": "Shards", "shards_per_client": 3},
    {"partition": "dirichlet-sizes", "delta": 5.0},
    {"hidden": [5], "activation": "tanh"},
    {"man": True, "zeta": 0.0, "zeta_logits": 0.5},
    {"man": True, "zeta": 0.5},
    {"swa_start": 0.5, "swa_every": 3},
]


def ask(path: Path | None = None, preset: str | None = None, **options: Any) -> None:
    read_fields(path, preset, options, [], resume=False, out=Path("run"))


def toml(path: Path, fields: dict[str, Any]) -> Path:
    """A file as a user writes one."""
    words = {True: "true", False: "false"}
    lines = [f"{name} = {words[value] if isinstance(value, bool) else repr(value)}" for name, value in fields.items()]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(("fields", "named", "why"), IDLE)
def test_a_field_without_effect_is_refused_from_options_and_files(
    fields: dict[str, Any], named: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        ask(**fields)
    assert str(caught.value).startswith(f"In the options, {named} has no effect: ")
    assert why in str(caught.value)
    path = toml(tmp_path / "mine.toml", fields)
    with pytest.raises(UsageError) as caught:
        ask(path, model=fields.get("model"))
    assert str(caught.value).startswith(f"In the configuration {path}, {named} has no effect: ")
    assert why in str(caught.value)


@pytest.mark.parametrize("fields", USED)
def test_a_field_beside_what_it_needs_is_taken(fields: dict[str, Any], tmp_path: Path) -> None:
    ask(**fields)
    ask(toml(tmp_path / "mine.toml", fields))


def test_an_option_may_give_a_field_of_a_file_its_effect_or_take_it_away(tmp_path: Path) -> None:
    ask(toml(tmp_path / "a.toml", {"zeta": 0.5}), man=True)
    ask(toml(tmp_path / "a.toml", {"zeta": 0.5}), man=False)
    ask(toml(tmp_path / "b.toml", {"zeta": 0.5, "man": True}), man=False)
    ask(toml(tmp_path / "c.toml", {"delta": 0.5}), partition="iid")
    with pytest.raises(UsageError, match=r"delta = 0\.5 has no effect"):
        ask(toml(tmp_path / "c.toml", {"delta": 0.5}), preset="cifar100-iid")


@pytest.mark.parametrize("name", PRESETS)
def test_a_runs_own_file_is_taken_whole(name: str, tmp_path: Path) -> None:
    config = make_config(preset_fields(name, "fedavg", man=False))
    path = tmp_path / "config.toml"
    write_config(path, config)
    ask(path)
    ask(path, partition="shards", man=True)
    assert read_fields(None, None, {}, [], resume=True, out=tmp_path) == config
    with pytest.raises(UsageError, match="sigma = 2 has no effect"):
        ask(path, sigma=2)


@pytest.mark.parametrize("name", shipped_grids())
def test_shipped_grids_name_nothing_without_effect(name: str) -> None:
    grid = parse_grid(read_grid_text(name), name)
    require_effects(grid, grid_cells(grid), name)


GRID = """
title = "t"
[common]
dataset = "digits"
{common}
[axes]
algorithms = ["fedavg"]
man = [{man}]
partitions = ["dirichlet-0.3"]
seeds = [0]
[measure]
{measure}
"""


@pytest.mark.parametrize(
    ("common", "man", "measure", "said"),
    [
        ("sigma = 2", "true", "", "sigma = 2 has no effect"),
        ("zeta = 0.3", "false", "", "zeta = 0.3 has no effect"),
        ("zeta = 0", "false, true", "", "zeta = 0 has no effect"),
        ("", "false", "local_clients = 2", "local_clients = 2 has no effect"),
        ("zeta = 0.3", "false, true", "local_clients = 2\nkeep_clients = [40]", ""),
    ],
)
def test_a_grid_names_nothing_without_effect(common: str, man: str, measure: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "g.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GRID.format(common=common, man=man, measure=measure).encode())  # as on Windows
    if said:
        with pytest.raises(UsageError, match=said):
            read_reproduction(str(path), Where())
    else:
        assert len(read_reproduction(str(path), Where()).cells) == 2


def test_a_configuration_as_windows_writes_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbfrounds = 2\r\nlr = 0.2\r\n")
    assert read_config(tmp_path / "c.toml") == {"rounds": 2, "lr": 0.2}


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        ({"rounds": 3}, ["rounds=4"], "rounds is given twice, as 3 and as 4"),
        ({"man": True}, ["man=false"], "man is given twice, as true and as false"),
        ({}, ["lr=1", "lr=2"], "lr is given twice"),
        ({"algorithm": "fedsam"}, ["rho=0.1", "hyper.rho=0.2"], "rho is given twice"),
        ({}, ["batch_size=20\nrounds=3"], "holds more than one field"),
        ({}, ["batch_size=20\n[hyper]\nrho=3"], "holds more than one field"),
    ],
)
def test_a_contradiction_is_refused(options: dict[str, Any], settings: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_fields(None, None, options, settings, resume=False, out=Path("run"))


def test_the_same_said_twice_is_no_contradiction() -> None:
    options = {"algorithm": "FedSAM", "lr": 1.0}
    config = read_fields(None, None, options, ["algorithm=fedsam", "lr=1"], resume=False, out=Path("run"))
    assert (config.algorithm, config.lr) == ("fedsam", 1.0)
    assert read_settings(["rho=0.1", "hyper.rho=0.1", "lr=2"]) == {"hyper": {"rho": 0.1}, "lr": 2}


def test_patience_is_flowers() -> None:
    with pytest.raises(UsageError, match="add --engine flower"):
        Execution(patience=3.0)
    assert Execution(engine="flower", patience=3.0).patience == 3.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--dry-run", "--keep-clients", "3", "--rounds", "2"), "--keep-clients 3: the run has only 2 rounds"),
        (("--dry-run", "--keep-clients", "0"), "--keep-clients is a whole number"),
        (("--dry-run", "--save-every", "nan"), "--save-every is a number of seconds"),
        (("--dry-run", "--workers", "3", "--engine", "batched"), "--workers is of worker processes"),
        (("--dry-run", "--track", "nothing"), "--track is one of"),
        (("--dry-run", "--json", "x.json"), "--json has no effect beside --dry-run"),
        (("--dry-run", "--save-split", "s.json"), "--dry-run has no effect beside --save-split"),
        (("--save-shares", "s", "--keep-clients", "1"), "--keep-clients has no effect beside --save-shares"),
        (("--show-split", "--save-shares", "s"), "--save-shares has no effect beside --show-split"),
        (("--show-split", "--workers", "2"), "--workers has no effect beside --show-split"),
    ],
)
def test_what_leaves_before_training_checks_or_refuses_how_to_train(
    words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = flatlab("train", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("of", "asked", "hyper"),
    [("fedsam", "FedASAM", {"rho": 0.5}), ("feddyn", "fedcm", {"alpha": 0.1}), ("fedavgm", "fedacg", {"beta": 0.002})],
)
def test_a_run_s_own_file_leaves_another_algorithm_its_defaults(
    of: str, asked: str, hyper: dict[str, float], tmp_path: Path
) -> None:
    path = tmp_path / "config.toml"
    write_config(path, make_config({"algorithm": of, "rounds": 3}))
    config = read_fields(path, None, {"algorithm": asked}, [], resume=False, out=tmp_path / "run")
    assert config.rounds == 3
    assert hyper.items() <= vars(config.hyperparameters).items()
    (name,) = hyper
    given = read_fields(path, None, {"algorithm": asked}, [f"{name}=0.3"], resume=False, out=tmp_path / "run")
    assert getattr(given.hyperparameters, name) == 0.3
    same = read_fields(path, None, {"algorithm": of}, [f"{name}=0.3"], resume=False, out=tmp_path / "run")
    assert getattr(same.hyperparameters, name) == 0.3


def test_hyperparameters_written_by_hand_are_not_another_algorithm_s(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('algorithm = "FedSAM"\n[hyper]\nrho = 0.07\n')
    with pytest.raises(UsageError, match="are of fedsam, and the options name fedasam: take them out of the file"):
        ask(path, algorithm="fedasam")
    path.write_text("[hyper]\nrho = 0.07\n")  # of whatever is named
    config = read_fields(path, None, {"algorithm": "fedasam"}, [], resume=False, out=tmp_path / "run")
    assert vars(config.hyperparameters)["rho"] == 0.07


def test_a_name_of_a_field_and_of_a_hyperparameter_is_not_guessed() -> None:
    with pytest.raises(UsageError, match=r"--set hyper\.clip=0\.1 is the first"):
        read_settings(["clip=0.1"], {"clip"})
    assert read_settings(["hyper.clip=0.1"], {"clip"}) == {"hyper": {"clip": 0.1}}
