"""A model is tried once before round 1, on a few images, so that no run ends in what could be known at its beginning.

What is refused: a forward pass or a gradient that fails; outputs that are no logits; statistics that are kept as the
model trains, and samples that influence one another; parts that differ from one building of the model to the next,
which worker processes would not share; a model that its checkpoint does not bring back; and MAN where it finds nothing.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from analysis.taps import Activation, named_activations
from flatlab.data import ImageData, normalise
from flatlab.errors import UsageError, first_line
from flatlab.federated.algorithm_trial import try_algorithm
from flatlab.federated.config import RunConfig
from flatlab.federated.engine.sequential import loss_gradient
from flatlab.federated.man import Penalised, Taps
from flatlab.federated.models import MODELS
from flatlab.federated.own_code import ALGORITHM, MODEL, model_numbers
from flatlab.federated.parameters import flatten, load_vector, state_of
from flatlab.federated.streams import begin, seeded, stream_seed
from flatlab.federated.world import OwnCode, World
from flatlab.runs.checkpoint import fill, versioned
from flatlab.runs.contents import require_state

SAMPLES = 3
"""Training images of the trial; a second run takes one less, to see along which axis the samples lie."""

SHIFT = 0.05
"""Standard deviation of what is added to the initial parameters, so that a trained model differs from a built one."""

SAME = 1e-3
"""Largest difference of outputs, relative to the largest output, that is rounding."""


def tried(world: World) -> World:
    """Try algorithm and model; return `world` with what was seen of its activations, for engines and `statement`.

    Leaves torch's global generators as they were. Raises `UsageError` as the module says.
    """
    draws, numbers = try_algorithm(world.config)
    world = replace(world, draws=draws)
    index = torch.arange(SAMPLES) % len(world.data.train.labels)
    x = normalise(world.data.train.images[index], world.data.mean, world.data.std, dtype=world.dtype)
    layers = world.config.man_layers if world.config.man else ()
    with seeded(world.config.seed, "trial"):
        model = world.new_model()
        _refuse_unknown_layers(world, model, layers)
        theta = flatten(dict(model.named_parameters()), world.layout)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with _usage(f"The model {world.config.model} cannot be run on {_described(world, x)}"):
            everywhere = _run_twice(world, model, x, ())
            tapped = _run_twice(world, model, x, layers) if layers else everywhere
        _refuse_changed_buffers(model, before)
        y = world.data.train.labels[index]
        plain = replace(world, config=world.config.model_copy(update={"man": False, "zeta_logits": 0.0}))
        with _usage(f"The model {world.config.model} cannot be trained"):
            _gradient(plain, model, x, y, theta)
        _seed(world)
        _refuse_what_is_not_rebuilt(world, x, theta + SHIFT * torch.randn_like(theta))
        _refuse_a_wrong_single(plain, model, x, y, theta)
        world = replace(world, taps=_taps(everywhere, tapped))
        if world.config.man:
            _refuse_nothing_to_penalise(world, model)
            world = _with_copies_if_needed(world, model, x, y, theta)
    return replace(world, own_code=_own_code(world.config, world.data, numbers))


def own_code_of(config: RunConfig, data: ImageData) -> OwnCode:
    """What the user's own model and algorithm of the run compute now; raises `UsageError` as the module says."""
    return _own_code(config, data, try_algorithm(config)[1])


def _own_code(config: RunConfig, data: ImageData, numbers: Sequence[float]) -> OwnCode:
    own = {MODEL: model_numbers(config, data)} if config.model not in MODELS else {}
    return own | ({ALGORITHM: list(numbers)} if numbers else {})


def _described(world: World, x: Tensor) -> str:
    what = "images" if world.data.of_images else "inputs" if x.is_floating_point() else "tokens"
    hint = "; whole numbers are tokens: return floats, or name a model with an embedding" if what == "tokens" else ""
    return f"{what} of shape {tuple(x.shape[1:])}{hint}"


def statement(world: World) -> str:
    """One sentence on what MAN penalises in a world that was tried; empty where MAN is off."""
    if not (world.config.man and world.config.zeta):
        return ""
    listed = ", ".join(f"{found.name} ({found.units:,})" for found in world.taps.penalised)
    return f"MAN penalises (units per image): {listed}."


@contextmanager
def _usage(complaint: str) -> Iterator[None]:
    """Turn whatever a user's model raises into one sentence."""
    try:
        with warnings.catch_warnings():
            # a reentrant checkpoint of the images themselves, whose layers would never train
            warnings.filterwarnings("error", message="None of the inputs have requires_grad=True")
            yield
    except UsageError:
        raise
    except Exception as error:
        advice = "; give torch.utils.checkpoint use_reentrant=False" if "use_reentrant" in str(error) else ""
        if isinstance(error, UserWarning):
            advice = "; give torch.utils.checkpoint use_reentrant=False"
        raise UsageError(f"{complaint}: {first_line(error)}{advice}.") from error


def _seed(world: World) -> None:
    begin(stream_seed(world.config.seed, "trial"))


def _run_twice(
    world: World, model: nn.Module, x: Tensor, layers: Sequence[str]
) -> tuple[list[Activation], list[Activation]]:
    """The activations, or the outputs of `layers`, in training mode on `x` and on one sample less."""
    runs = []
    for images in (x, x[:-1]):
        _seed(world)
        model.train()
        outputs, activations = named_activations(model, images, layers)
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != images.shape[:1] or outputs.dim() != 2:
            form = (
                f"a tensor of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            )
            raise UsageError(
                f"The model {world.config.model} must return logits ({len(images)}, {world.data.classes}) for "
                f"{len(images)} images, but returned {form}."
            )
        if outputs.shape[1] < world.data.classes:
            raise UsageError(
                f"The model {world.config.model} returns {outputs.shape[1]} logits, but the data have "
                f"{world.data.classes} classes."
            )
        runs.append(activations)
    return runs[0], runs[1]


def _taps(
    everywhere: tuple[list[Activation], list[Activation]], tapped: tuple[list[Activation], list[Activation]]
) -> Taps:
    """Where MAN acts: on what changes its shape with the number of samples and depends on a parameter that trains."""
    ignored = frozenset(n for n, (more, less) in enumerate(_pairs(everywhere)) if more.shape == less.shape)
    kept = list(_pairs(tapped))
    if tapped is everywhere:
        kept = [pair for n, pair in enumerate(kept) if n not in ignored]
    axes = tuple(_samples_axis(more.shape, less.shape) for more, less in kept)
    penalised = tuple(
        Penalised(more.name, more.shape.numel() // SAMPLES, axis)
        for (more, less), axis in zip(kept, axes, strict=True)
        if more.requires_grad and not more.is_output and more.shape != less.shape
    )
    return Taps(penalised, ignored, axes)


def _pairs(runs: tuple[list[Activation], list[Activation]]) -> Iterator[tuple[Activation, Activation]]:
    """The same activation in both runs; of a model that computes others each time, each beside an empty one."""
    more, less = runs
    if [a.name for a in more] != [a.name for a in less]:
        less = [replace(activation, shape=torch.Size()) for activation in more]
    return zip(more, less, strict=True)


def _samples_axis(more: torch.Size, less: torch.Size) -> int | None:
    """The only axis in which the two shapes differ, if it has one entry per sample."""
    if len(more) != len(less):
        return None
    differing = [axis for axis, sizes in enumerate(zip(more, less, strict=True)) if sizes[0] != sizes[1]]
    return differing[0] if len(differing) == 1 and more[differing[0]] == SAMPLES else None


def _gradient(world: World, model: nn.Module, x: Tensor, y: Tensor, theta: Tensor) -> None:
    """Take one gradient as a client does."""
    _seed(world)
    model.train()
    loss_gradient(world, model, x, y, theta)


def _refuse_a_wrong_single(world: World, model: nn.Module, x: Tensor, y: Tensor, theta: Tensor) -> None:
    """Hold the gradient of one sample to that of the same sample twice, where a client has a batch of one.

    On a CPU torch 2.13 misreads what flows back to an instance normalisation of one image that is made into tokens.
    """
    if all(samples % world.config.batch_size != 1 % world.config.batch_size for samples in map(len, world.parts)):
        return
    model.eval()
    alone, twice = (loss_gradient(world, model, x[index], y[index], theta)[1] for index in ([0], [0, 0]))
    if (alone - twice).norm() > SAME * twice.norm():
        raise UsageError(
            f"torch's gradient of the model {world.config.model} for a batch of one sample, which a client here has, "
            "is another than for the same sample twice: make the outputs of its normalisations contiguous "
            "(`.contiguous()`), or choose a batch_size that leaves no sample alone."
        )


def _with_copies_if_needed(world: World, model: nn.Module, x: Tensor, y: Tensor, theta: Tensor) -> World:
    """Let MAN keep copies of the activations where it fails without."""
    try:
        _gradient(world, model, x, y, theta)
    except RuntimeError:
        world = replace(world, taps=replace(world.taps, copies=True))
        with _usage(f"The model {world.config.model} trains, but not with MAN"):
            _gradient(world, model, x, y, theta)
    return world


def _refuse_changed_buffers(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        if name in before and not _same(buffer, before[name]):
            raise UsageError(
                f"The model keeps running statistics ({name} changes as it trains), which no federated algorithm here "
                "averages; use GroupNorm instead of BatchNorm, and no spectral norm."
            )


def _refuse_unknown_layers(world: World, model: nn.Module, layers: Sequence[str]) -> None:
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for name in layers:
        if name not in known:
            raise UsageError(
                f"man_layers names {name!r}, but the model {world.config.model} has no such module; it has "
                f"{', '.join(known)}."
            )


def _refuse_nothing_to_penalise(world: World, model: nn.Module) -> None:
    found = {each.name for each in world.taps.penalised}
    for name in world.config.man_layers:
        if name not in found:
            raise UsageError(
                f"man_layers names {name!r}, but MAN has nothing to penalise there: the module does not run by itself, "
                "or returns the logits, no tensor, or what does not depend on both images and parameters that train."
            )
    if world.config.zeta and not found:
        modules = ", ".join(name for name, _ in model.named_modules() if name)
        raise UsageError(
            f"MAN finds no activation in the model {world.config.model}: name modules whose outputs it shall penalise "
            f"with --set man_layers='[\"name\"]' ({modules}), or leave MAN out."
        )


def _refuse_what_is_not_rebuilt(world: World, x: Tensor, theta: Tensor) -> None:
    """Build the model again, as every worker process does, and from a saved state, as every measurement does."""
    name = world.config.model
    model, again = world.new_model(), world.new_model()
    load_vector(model, theta)
    load_vector(again, theta)
    expected = _outputs(world, model, x)
    _refuse_influence(world, model, x, expected)
    if not _same(_outputs(world, again, x), expected):
        raise UsageError(
            f"Built twice, the model {name} gives other outputs with the same parameters, so worker processes would "
            "train different models; draw frozen parameters and buffers from torch's generator."
        )
    file = io.BytesIO()
    with _usage(f"The state of the model {name} cannot be saved as tensors and plain data"):
        torch.save(state_of(model, theta, world.layout), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    try:
        require_state(state, Path("final.pt"), "state_dict")
    except UsageError as error:
        raise UsageError(
            f"What a checkpoint of the model {name} would hold could not be read again: {error}"
        ) from error
    again = world.new_model()
    state = versioned(state, getattr(again.state_dict(), "_metadata", {}))
    fill(again, state, f"The model {name} does not take back its own state_dict")
    if not _same(_outputs(world, again, x), expected):
        raise UsageError(
            f"Rebuilt from its state_dict, the model {name} gives other outputs; keep all that it needs in parameters "
            "and persistent buffers."
        )


def _refuse_influence(world: World, model: nn.Module, x: Tensor, together: Tensor) -> None:
    fewer = _outputs(world, model, x[:-1])
    difference = (together[:-1] - fewer).abs().max()
    if difference > SAME * together.abs().max():
        mixing = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        raise UsageError(
            f"What the model {world.config.model} returns for an image depends on the other images of its batch"
            f"{f' ({mixing[0]} uses batch statistics)' if mixing else ''}, so its loss is no sum over images; use "
            "GroupNorm instead of BatchNorm, and batch_first=True in attention and recurrent layers."
        )


def _outputs(world: World, model: nn.Module, x: Tensor) -> Tensor:
    _seed(world)
    with torch.no_grad(), _usage(f"The model {world.config.model} cannot be run in evaluation mode"):
        model.eval()  # which a model's own may not return
        outputs: Tensor = model(x)
    return outputs


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, nan where the other has nan."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
