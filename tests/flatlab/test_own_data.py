"""Data that a user's function returns: tables and text train, stop, go on and are measured as images are."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flatlab.data import load_images
from flatlab.data.samples import AS_FOUND, Reading
from flatlab.errors import UsageError
from flatlab.federated.config import RunConfig
from flatlab.federated.engine.batched import BatchedEngine
from flatlab.federated.engine.sequential import SequentialEngine
from flatlab.federated.rounds import Run
from flatlab.federated.world import make_world, resolve
from flatlab.functions import let_run, names_function
from flatlab.grid.plan import parse_grid, require_named_code
from flatlab.runs.fingerprint import data_digest, settled
from tests.command_line import flatlab

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "data.md"


def documented(title: str) -> str:
    """The Python of the document's section `title`."""
    section = DOCUMENT.read_text(encoding="utf-8").split(f"### {title}\n", 1)[1]
    return section.split("```python\n", 1)[1].split("```", 1)[0]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder of its own, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def write(folder: Path, body: str, name: str = "mine") -> str:
    """Write a module with the function `data`; returns the function's name."""
    lines = (
        "import torch",
        "import numpy as np",
        "def data():",
        "    x = torch.randn(20, 6)",
        "    y = torch.arange(20) % 3",
    )
    text = "\n".join((*lines, f"    {body}\n"))
    (folder / f"{name}.py").write_text(text)
    return f"{name}:data"


def load(folder: Path, body: str, name: str, reading: Reading = AS_FOUND) -> Any:
    function = write(folder, body, name)
    let_run(function)
    return load_images(function, reading=reading)


def test_the_documented_table_trains_is_split_by_its_column_and_measured(here: Path) -> None:
    (here / "table.py").write_text(documented("A table"))
    words = ["--dataset", "table:tumours", "--clients", "4", "--rounds", "2", "--workers", "1", "--out", "run"]
    done = flatlab("train", *words, "--partition", "column", "--partition-column", "hospital", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "--dataset table:tumours" in done.stdout  # in the line that measures it
    refused = flatlab("eigs", "run/final.pt", "--samples", "50", cwd=here)
    assert refused.returncode == 2
    assert "add --dataset table:tumours" in " ".join(refused.stderr.split())
    measured = flatlab("eigs", "run/final.pt", "--samples", "50", "--dataset", "table:tumours", cwd=here)
    assert measured.returncode == 0, measured.stderr
    assert "fc1" in measured.stdout
    again = flatlab("train", "--resume", "--out", "run", cwd=here)
    assert again.returncode == 2
    assert "add --dataset table:tumours" in " ".join(again.stderr.split())


@pytest.mark.long
def test_the_documented_text_trains_and_is_measured(here: Path) -> None:
    (here / "text.py").write_text(documented("Text, character by character"))
    named = ["--dataset", "text:letters", "--model", "text:network"]
    done = flatlab(
        "train", *named, *["--clients", "3", "--rounds", "1", "--workers", "1", "--man", "--out", "run"], cwd=here
    )
    assert done.returncode == 0, done.stderr
    measured = flatlab("eigs", "run/final.pt", *named, "--samples", "40", "--layers", "none", cwd=here)
    assert measured.returncode == 0, measured.stderr


def test_engines_agree_on_tables_and_tokens(here: Path) -> None:
    write(here, "return (x, y), (x, y)", "floats")
    (here / "tokens.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def data():\n    x = torch.randint(0, 9, (24, 5), generator=torch.Generator().manual_seed(0))\n"
        "    return (x, x[:, 0] % 3), (x, x[:, 0] % 3)\n\n"
        "def model(input_shape, classes):\n"
        "    head = nn.Linear(6, classes)\n"
        "    return nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 6), nn.Tanh(), head)\n"
    )
    for dataset, model in (("floats:data", "auto"), ("tokens:data", "tokens:model")):
        let_run(dataset)
        torch.manual_seed(0)
        config = RunConfig(dataset=dataset, model=model, clients=3, rounds=2, participation=1.0, dtype="float64")
        world = make_world(config)
        vectors = []
        for engine in (SequentialEngine(world), BatchedEngine(world, torch.device("cpu"))):
            run = Run(world, here / f"{dataset}-{type(engine).__name__}".replace(":", "-"))
            with engine:
                run.begin()
                for _ in range(2):
                    run.advance(engine)
            vectors.append(run.server.w)
        assert torch.allclose(vectors[0], vectors[1], rtol=1e-9, atol=1e-12)


def test_floats_and_tokens_are_taken_as_they_are_and_images_are_normalised(here: Path) -> None:
    data = load(here, "return (x.half(), y), (x.half(), y)", "halves")
    assert (data.train.images.dtype, data.mean, data.input_shape, data.classes) == (torch.float32, (), (6,), 3)
    data = load(
        here,
        "return (np.ones((4, 7), dtype=np.int32), np.arange(4)), (torch.ones(4, 7).int(), y[:3].repeat(2)[:4])",
        "ints",
    )
    assert data.train.images.dtype == torch.int64
    data = load(here, "i = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8); return (i, y), (i, y)", "images")
    assert data.mean == pytest.approx(tuple((data.train.images / 255.0).mean(dim=(0, 2, 3)).tolist()), rel=1e-5)


WHOLE = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("library", ["torch", "np"])
def test_whole_numbers_of_any_kind_are_labels_and_tokens(library: str, kind: str, here: Path) -> None:
    part = {"torch": f"y.to(torch.{kind})", "np": f"y.numpy().astype(np.{kind})"}[library]
    data = load(here, f"y = {part}; return (x, y), (x, y)", f"labels_{library}_{kind}")
    assert data.train.labels.tolist() == [k % 3 for k in range(20)]
    data = load(here, f"t = {part}[:, None]; return (t, y), (t, y)", f"tokens_{library}_{kind}")
    assert (data.train.images.dtype, data.train.images[:4].tolist()) == (torch.int64, [[0], [1], [2], [0]])


def test_arrays_in_any_byte_order_are_read(here: Path) -> None:
    body = "x = np.arange(120.).reshape(20, 6); x.flags.writeable = False; y = y.numpy(); return (x, y), (x, y)"
    expected = load(here, body, "plain")
    for order in "<>":
        turned = body.replace("; return", f"; x, y = x.astype('{order}f4'), y.astype('{order}i2'); return")
        data = load(here, turned, {"<": "little", ">": "big"}[order])
        assert torch.equal(data.train.images, expected.train.images.float())
        assert torch.equal(data.train.labels, expected.train.labels)


def test_other_numbers_are_other_data(here: Path) -> None:
    one, same, other = (
        data_digest(load(here, f"torch.manual_seed({seed}); x = torch.randn(20, 6); return (x, y), (x, y)", name))
        for name, seed in (("first", 1), ("second", 1), ("third", 2))
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return x, y, x", r"must return \(train, test\)"),
        ("return (x, y), x", r"must return \(inputs, labels\) as its test split"),
        ("return (x, y, 3), (x, y)", "dictionary of columns"),
        ("return (x[:5], y), (x, y)", "training labels that are 5 whole numbers, not int64 of shape"),
        ("return (x, y.float()), (x, y)", "whole numbers, not float32"),
        ("return (x, y - 1), (x, y)", "training label -1: classes are counted from 0"),
        ("return (x, y), (x, y + 10**9)", "has the label 1000000002"),
        ("return (x, y), (x[:, :4], y)", "for training and float32 of shape .20, 4. for testing"),
        ("return (x.log(), y), (x, y)", "training inputs that are not finite"),
        ("return (x[:0], y[:0]), (x, y)", "inputs of shape"),
        ("return (x[:, 0], y), (x, y)", "inputs of shape"),
        ("return (x.to_sparse(), y), (x, y)", "dense tensors of real numbers"),
        ("return (x + 1j, y), (x, y)", "dense tensors of real numbers"),
        ("return ('abc', y), (x, y)", "must return tensors, but returns a str"),
        ("return (np.array(['a'] * 20), y), (x, y)", "numbers are needed"),
        ("return (np.ma.masked_less(x.numpy(), 0), y), (x, y)", "training arrays of which some values are masked"),
        ("return (x, y), (x, np.ma.masked_equal(y.numpy(), 1))", "test arrays of which some values are masked"),
        ("return (x, y.numpy().astype(np.uint64) + np.uint64(2**63)), (x, y)", r"training numbers from 2\^63 on"),
        ("return (torch.nested.nested_tensor([*x]), y), (x, y)", "dense tensors of real numbers, not nested"),
        ("return (x.to('meta'), y), (x, y)", "dense tensors of real numbers"),
        ("return (x[:, :0], y), (x[:, :0], y)", "inputs of shape"),
        ("return (x, y > 1), (x, y)", "whole numbers, not bool"),
        ("return (torch.zeros(20, 2, dtype=torch.uint8).view(torch.uint4), y), (x, y)", "numbers of whole bytes"),
        ("raise KeyError('no')", "called without arguments, raised KeyError"),
    ],
)
def test_what_is_no_data_is_refused_in_a_sentence(here: Path, body: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load(here, body, f"bad{abs(hash(body))}")


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", ["x, v = v, x", "pass"])
def test_inputs_that_are_infinite_in_the_run_are_refused(here: Path, sign: int, place: str) -> None:
    name = f"large{sign % 3}{len(place)}"
    load(here, f"x = x.double(); v = x.clone(); v[3, 2] = {sign}e300; {place}; return (x, y), (v, y)", name)
    fields = {"dataset": f"{name}:data", "model": "mlp"}
    what = "training" if place != "pass" else "test"
    with pytest.raises(UsageError, match=rf"has {what} inputs as large as 1e\+300, and float32 ends at 3.4e\+38"):
        resolve(RunConfig.model_validate(fields))
    assert resolve(RunConfig.model_validate({**fields, "dtype": "float64"}))[1].input_shape == (6,)


def test_test_inputs_that_are_training_inputs_are_counted(here: Path) -> None:
    said = "The data set copies:data has 20 test inputs, of which 5 are training inputs too"
    with pytest.warns(UserWarning, match=said):
        load(here, "z = torch.randn(20, 6); z[:5] = x[3:8]; return (x, y), (z, y)", "copies")
    with warnings.catch_warnings(action="error"):
        load(here, "return (x[:15], y[:15]), (x[15:], y[15:])", "apart")
        load(here, "t = y[:, None]; return (t, y), (t, y)", "tokens")


def test_columns_are_looked_for_by_name(here: Path) -> None:
    data = load(here, "return (x, y, {'who': np.array(['b', 'a'] * 10)}), (x, y)", "named", Reading(column="who"))
    assert data.train.owners.tolist() == [1, 0] * 10
    assert data.subset(10, None, 0).train.owners.unique().tolist() == [0, 1]
    with pytest.raises(UsageError, match=r"no column 'when' .*it has: who"):
        load_images("named:data", reading=Reading(column="when"))
    with pytest.raises(UsageError, match="no use for image_size = 8"):
        load_images("named:data", reading=Reading(size=8))


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        ("[None, 'b'] * 10", "no value in its column 'who' for training sample 0: each needs its client"),
        ("[1.0, float('nan')] * 10", "no value in its column 'who' for training sample 1"),
        ("['a'] * 19 + [float('nan')]", "no value in its column 'who' for training sample 19"),
        ("__import__('pandas').array([1, None] * 10)", "no value in its column 'who' for training sample 1"),
        ("np.array(['2020', 'NaT'] * 10, dtype='M8[D]')", "no value in its column 'who' for training sample 1"),
        ("[1, 'b'] * 10", r"no order \(int, str\): use names, or whole numbers"),
        ("[{}] * 20", r"no order \(dict\)"),
        ("[[1], [2, 3]]", "must return 20 values as its column 'who', not"),
        ("torch.zeros(20, device='meta')", "column 'who' what cannot be read"),
    ],
)
def test_a_column_with_gaps_or_without_order_is_refused(here: Path, column: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load(here, f"return (x, y, {{'who': {column}}}), (x, y)", f"c{abs(hash(column))}", Reading(column="who"))


@pytest.mark.parametrize("column", ["np.arange(20) % 2 == 0", "(torch.arange(20) % 2 - 0.5).half().requires_grad_()"])
def test_columns_of_any_numbers(here: Path, column: str) -> None:
    data = load(
        here, f"return (x, y, {{1: y, 'who': {column}}}), (x, y)", f"c{abs(hash(column))}", Reading(column="who")
    )
    assert sorted(data.train.owners.unique().tolist()) == [0, 1]
    with pytest.raises(UsageError, match=r"no column 'when' .*it has: 1, who"):
        load_images(f"c{abs(hash(column))}:data", reading=Reading(column="when"))


def test_no_file_chooses_what_is_imported(here: Path) -> None:
    (here / "evil.py").write_text("raise SystemError('this ran')\n")
    config = RunConfig(dataset="evil:data", clients=2)
    axes = '[axes]\nseeds = [0]\npartitions = ["iid"]\nalgorithms = ["fedavg"]\n'
    grid = parse_grid(f'title = "g"\n[common]\ndataset = "evil:data"\n{axes}', "g.toml")
    for attempt in (
        lambda: resolve(config),
        lambda: make_world(config),
        lambda: require_named_code(grid, None, None, (), "g.toml"),
    ):
        with pytest.raises(UsageError, match=r"A file names evil:data as its data set, .*add --dataset"):
            attempt()
    assert settled(config).model == "mlp"  # without a look at the data
    (here / "run.toml").write_text('dataset = "evil:data"\n')
    done = flatlab("train", "--config", "run.toml", cwd=here)
    assert done.returncode == 2
    assert "this ran" not in done.stderr


def test_folders_are_not_taken_for_functions() -> None:
    assert names_function("a.b:c")
    for folder in ("./a:b", "a/b:c", "C:\\data", "digits", "a:b:c", "org/name", "a:"):
        assert not names_function(folder)


def test_a_convolutional_model_on_a_table_is_refused(here: Path) -> None:
    name = write(here, "return (x, y), (x, y)", "flat")
    let_run(name)
    with pytest.raises(UsageError, match=r"cifar-cnn needs images, but these inputs are of shape \(6,\)"):
        make_world(RunConfig(dataset=name, model="cifar-cnn", clients=2))
    with pytest.raises(UsageError, match="no images to flip and crop"):
        make_world(RunConfig(dataset=name, augmentation="flip-crop", clients=2))


@pytest.mark.long
def test_a_grid_on_a_function_needs_it_named_and_is_done_once(here: Path) -> None:
    write(
        here, "torch.manual_seed(0); x = torch.randn(20, 6); return (x, y, {'who': np.arange(20) % 2}), (x, y)", "cells"
    )
    (here / "grid.toml").write_text(
        'title = "own"\n[common]\ndataset = "cells:data"\nclients = 2\nrounds = 1\nbatch_size = 10\n'
        '[axes]\nalgorithms = ["fedavg"]\npartitions = ["classes-3"]\nman = [false]\nseeds = [0]\n'
        "[measure]\nsamples = 20\ntrace_tol = 0.5\ndensity_probes = 1\ndensity_depth = 5\nsurface_points = 3\n"
    )
    words = ("reproduce", "grid.toml", "--out", "results", "--jobs", "2")
    refused = flatlab(*words, cwd=here)
    assert refused.returncode == 2
    assert "add --dataset cells:data" in " ".join(refused.stderr.split())
    for done_now in (1, 0):
        done = flatlab(*words, "--dataset", "cells:data", cwd=here)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"1 of 1 cells are done, {done_now} of them by this call" in " ".join(done.stdout.split())
