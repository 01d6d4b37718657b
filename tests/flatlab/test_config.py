"""Configurations: complete, exact in TOML and back, and refused in one sentence that names the field."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlab.errors import UsageError
from flatlab.federated.algorithms import ALGORITHMS
from flatlab.federated.config import make_config
from flatlab.federated.config_file import read_config, write_config


@given(
    algorithm=st.sampled_from(sorted(ALGORITHMS)),
    delta=st.floats(1e-3, 1e3),
    lr=st.floats(1e-6, 10),
    seed=st.integers(0, 2**63 - 1),
    hidden=st.lists(st.integers(1, 500), max_size=4),
    samples=st.none() | st.integers(1, 10**6),
    man=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_configuration_survives_toml_exactly(tmp_path_factory: pytest.TempPathFactory, **fields: Any) -> None:
    fields["train_samples"] = fields.pop("samples")
    config = make_config(fields)
    path = tmp_path_factory.mktemp("config") / "config.toml"
    write_config(path, config)
    assert make_config(read_config(path)) == config


def test_a_configuration_states_every_hyperparameter() -> None:
    assert make_config({"algorithm": "fedasam"}).hyper == {"rho": 0.5, "eta": 0.2}
    assert make_config({"algorithm": "fedasam", "hyper": {"rho": 0.1}}).hyper == {"rho": 0.1, "eta": 0.2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"round": 3}, "Unknown field 'round' in the options; the fields are: dataset"),
        ({"rounds": 0}, "rounds = 0 does not fit.*greater than or equal to 1"),
        ({"rounds": "ten"}, "rounds = 'ten' does not fit.*integer"),
        ({"rounds": 2.5}, "rounds = 2.5 does not fit"),
        ({"delta": 0}, "delta = 0 does not fit.*greater than 0"),
        ({"delta": -1.0}, "delta = -1.0 does not fit"),
        ({"delta": float("nan")}, "delta = nan does not fit"),
        ({"participation": 1.5}, "participation = 1.5 does not fit.*less than or equal to 1"),
        ({"participation": 0}, "participation = 0 does not fit"),
        ({"algorithm": "fedx"}, "algorithm = 'fedx' does not fit: no such algorithm; choose from fedavg"),
        ({"hyper": {"rho": 1}}, "fedavg has no hyperparameter 'rho' .it has: none"),
        ({"algorithm": "fedsam", "hyper": {"rho": "big"}}, "rho"),
        ({"algorithm": "fedsam", "hyper": {"rho": float("nan")}}, "rho"),
        ({"partition": "zipf"}, "partition = 'zipf' does not fit"),
        ({"hidden": [64, 0]}, "at least one unit"),
        ({"man": "yes please"}, "man = 'yes please' does not fit"),
        ({"seed": -1}, "seed = -1 does not fit"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make_config(fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["rounds = ", "[hyper\n", "\x00"])
def test_files_that_are_not_toml(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(content)
    with pytest.raises(UsageError, match=r"c\.toml is not valid TOML"):
        read_config(tmp_path / "c.toml")
    with pytest.raises(UsageError, match="Cannot read the configuration"):
        read_config(tmp_path / "none.toml")
