"""The trial before round 1: odd models train in every engine and are rebuilt, or are refused in one sentence."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.problem import make_problem
from analysis.spectrum import eigs
from flatlab.errors import UsageError
from flatlab.federated.engine.batched import BatchedEngine
from flatlab.federated.engine.process import ProcessEngine
from flatlab.federated.engine.sequential import SequentialEngine, loss_gradient
from flatlab.federated.parameters import flatten, load_vector, state_of
from flatlab.federated.rounds import Run
from flatlab.federated.trial import statement, tried
from flatlab.federated.world import World
from flatlab.runs.checkpoint import fill

MakeWorld = Callable[..., World]


@pytest.fixture(autouse=True)
def odd_models_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)


def world_of(toy_world: MakeWorld, name: str, **fields: object) -> World:
    return tried(toy_world(**{"model": f"odd_models:{name}", "rounds": 2, **fields}))


def two_rounds(world: World, folder: Path, engine: SequentialEngine | BatchedEngine | ProcessEngine) -> Run:
    run = Run(world, folder)
    run.begin()
    with engine:
        for _ in range(2):
            run.advance(engine)
        engine.evaluate([run.server.w])
    return run


FIT = (
    "tied", "shared", "tied_embedding", "frozen", "relative_positions", "sinusoids", "mask", "gated", "time_first",
    "gate_of_the_mean", "group_norm", "instance_norm_without_statistics", "weight_norm", "in_place", "ignored_return",
    "returns_nothing",
)  # fmt: skip
NO_STACK = {"checkpointed", "recurrent"}
RANDOM = {"dropout", "dropout_in_place"}


@pytest.mark.parametrize("name", [*FIT, *sorted(NO_STACK | RANDOM)])
def test_an_odd_model_trains_in_every_engine_is_saved_and_measured(
    name: str, toy_world: MakeWorld, tmp_path: Path
) -> None:
    world = world_of(toy_world, name, man=True)
    run = two_rounds(world, tmp_path / "1", SequentialEngine(world))
    initial = world.new_model()
    assert not torch.equal(run.server.w, flatten(dict(initial.named_parameters()), world.layout))
    if name not in NO_STACK | RANDOM:
        other = two_rounds(world, tmp_path / "2", BatchedEngine(world, torch.device("cpu")))
        torch.testing.assert_close(other.server.w, run.server.w, rtol=1e-11, atol=1e-12)

    run.checkpoint(tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt", weights_only=True)["state_dict"]
    rebuilt, trained = world.new_model(), world.new_model()
    for model in (rebuilt, trained):
        model.eval()
    fill(rebuilt, state, "does not fit")
    load_vector(trained, run.server.w)
    x = torch.randn(5, *world.data.input_shape, dtype=torch.float64)
    assert torch.equal(rebuilt(x), trained(x))
    for key, parameter in initial.named_parameters():
        assert torch.equal(state[key], parameter) == (not parameter.requires_grad)
    if name != "checkpointed":  # its second derivative cannot be had
        report = eigs(make_problem(rebuilt, "cross_entropy", (x, torch.arange(5) % 4)), k=1)
        frozen = {key.rpartition(".")[0] for key, p in rebuilt.named_parameters() if not p.requires_grad}
        assert not frozen & {layer.name for layer in report.layers}


def test_worker_processes_share_frozen_parts_and_ties(toy_world: MakeWorld, tmp_path: Path) -> None:
    for name in ("frozen", "tied"):
        world = world_of(toy_world, name)
        run = two_rounds(world, tmp_path / name, SequentialEngine(world))
        other = two_rounds(world, tmp_path / f"{name}-process", ProcessEngine(world, 1, 3))
        assert torch.equal(other.server.w, run.server.w)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("batch_norm", "keeps running statistics (norm.running_mean changes"),
        ("batch_norm_without_statistics", "depends on the other images of its batch (norm uses batch statistics)"),
        ("instance_norm", "keeps running statistics (norm.running_mean changes"),
        ("spectral_norm", "keeps running statistics (a.parametrizations.weight.0._"),
        ("attention_over_the_batch", "depends on the other images"),
        ("unlike", "Built twice, the model odd_models:unlike gives other outputs"),
        ("forgetful", "does not take back its own state_dict"),
        ("returns_a_dict", "must return logits (3, 4) for 3 images, but returned dict"),
        ("reentrant", "use_reentrant=False"),
        ("reentrant_from_the_images", "use_reentrant=False"),
        ("lazy", "has no shape yet"),
        ("complex_weights", "c is complex"),
        ("rotations", "table is complex"),
        ("all_frozen", "nothing to train"),
    ],
)
@pytest.mark.parametrize("man", [False, True])
def test_what_cannot_end_well_is_refused_before_it_begins(
    name: str, sentence: str, man: bool, toy_world: MakeWorld
) -> None:
    with pytest.raises(UsageError) as raised:
        world_of(toy_world, name, man=man)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_wrong_gradient_of_a_batch_of_one_is_refused_where_there_is_one(toy_world: MakeWorld) -> None:
    for sizes, batch_size in (((3, 5), 4), ((4, 8), 1)):
        with pytest.raises(UsageError, match=r"gradient .* of one sample"):
            world_of(toy_world, "normalised_tokens", sizes=sizes, batch_size=batch_size)
    world_of(toy_world, "normalised_tokens", sizes=(4, 8), batch_size=4)


@pytest.mark.parametrize("name", ["linear", "attention"])
def test_man_without_an_activation_is_refused_unless_layers_are_named(name: str, toy_world: MakeWorld) -> None:
    with pytest.raises(UsageError, match="MAN finds no activation"):
        world_of(toy_world, name, man=True)
    world_of(toy_world, name, man=False)
    layer = {"linear": "fc1", "attention": "mix"}[name]
    assert f"{layer} (" in statement(world_of(toy_world, name, man=True, man_layers=[layer]))


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [("fc9", "no such module; it has fc1, relu1"), ("", "no such module"), ("fc3", "nothing to penalise there")],
)
def test_layers_that_cannot_be_penalised_are_refused(layer: str, sentence: str, toy_world: MakeWorld) -> None:
    with pytest.raises(UsageError) as raised:
        tried(toy_world(man=True, man_layers=[layer]))
    assert sentence in str(raised.value) or "no such module; it has flatten, fc1" in str(raised.value)


def test_named_layers_are_penalised_and_nothing_else(toy_world: MakeWorld, tmp_path: Path) -> None:
    world = tried(toy_world(man=True, zeta=0.3, man_layers=["fc2"]))
    assert statement(world) == "MAN penalises (units per image): fc2 (5)."
    model = world.new_model()
    w = flatten(dict(model.named_parameters()), world.layout)
    x, y = torch.randn(6, 1, 3, 4, dtype=torch.float64), torch.arange(6) % 4
    _, gradient = loss_gradient(world, model, x, y, w)

    naive = world.new_model()
    fc1, fc2, fc3 = (layer for layer in naive.modules() if isinstance(layer, nn.Linear))
    a = fc2(fc1(x.flatten(1)).relu())
    objective = F.cross_entropy(fc3(a.relu()), y) + 0.15 * a.square().mean()
    expected = torch.autograd.grad(objective, list(naive.parameters()))
    torch.testing.assert_close(gradient, torch.cat([g.reshape(-1) for g in expected]))

    one = two_rounds(world, tmp_path / "1", SequentialEngine(world))
    stack = two_rounds(world, tmp_path / "2", BatchedEngine(world, torch.device("cpu")))
    torch.testing.assert_close(stack.server.w, one.server.w, rtol=1e-12, atol=1e-12)


def naive_middle(name: str, model: nn.Module, x: Tensor) -> Tensor:
    """The activation that MAN penalises, written out."""
    h: Tensor = model.fc1(x.flatten(1))  # type: ignore[operator]
    return {"in_place": F.gelu, "ignored_return": lambda h: F.leaky_relu(h, 0.2), "checkpointed": torch.tanh,
            "gated": torch.relu}[name](h)  # fmt: skip


@pytest.mark.parametrize("name", ["in_place", "ignored_return", "checkpointed", "gated"])
def test_the_penalty_of_what_is_changed_or_forgotten_later_is_exact(name: str, toy_world: MakeWorld) -> None:
    world = world_of(toy_world, name, man=True, zeta=0.6)
    model = world.new_model()
    w = flatten(dict(model.named_parameters()), world.layout)
    x, y = torch.randn(6, 1, 3, 4, dtype=torch.float64), torch.arange(6) % 4
    _, gradient = loss_gradient(world, model, x, y, w)
    naive = world.new_model()
    objective = F.cross_entropy(naive(x), y) + 0.3 * naive_middle(name, naive, x).square().mean()
    expected = torch.autograd.grad(objective, list(naive.parameters()))
    torch.testing.assert_close(gradient, torch.cat([g.reshape(-1) for g in expected]))


def test_the_statement_names_modules_and_functions(toy_world: MakeWorld) -> None:
    assert statement(tried(toy_world())) == ""
    assert statement(tried(toy_world(man=True))) == "MAN penalises (units per image): relu1 (6), relu2 (5)."
    assert statement(world_of(toy_world, "gated", man=True)) == "MAN penalises (units per image): relu (6)."
    assert statement(world_of(toy_world, "frozen", man=True)) == "MAN penalises (units per image): tanh #2 (6)."
    assert statement(world_of(toy_world, "recurrent", man=True)) == "MAN penalises (units per image): lstm (15)."


def test_the_trial_draws_nothing_from_the_global_generator(toy_world: MakeWorld) -> None:
    before = torch.random.get_rng_state()
    world_of(toy_world, "dropout", man=True)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_saved_state_shares_what_is_tied(toy_world: MakeWorld) -> None:
    world = world_of(toy_world, "tied")
    model = world.new_model()
    state = state_of(model, torch.zeros(world.layout.size, dtype=world.dtype), world.layout)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert list(loaded) == list(model.state_dict())
    assert loaded["a.weight"].data_ptr() == loaded["b.weight"].data_ptr()
    assert model.a.weight.abs().sum() > 0  # type: ignore[union-attr, operator]
