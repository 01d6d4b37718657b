"""One client after the other in this process, on one thread; also what each worker process runs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.taps import tap_activations
from flatlab.data import Split, normalise
from flatlab.federated.augment import crop, pad
from flatlab.federated.engine.base import Evaluation, RoundInputs, RoundOutputs
from flatlab.federated.local_batches import Batch, local_batches
from flatlab.federated.local_step import local_step_
from flatlab.federated.man import penalty_terms, square_sum
from flatlab.federated.own_calls import clients_named, require_kept
from flatlab.federated.precision import arithmetic, autocast
from flatlab.federated.streams import seeded, stream
from flatlab.federated.world import World
from flatlab.torch_settings import one_thread

TEST_CHUNK = 500
"""Images per forward pass in evaluation; fixed, since the order of summation must not depend on the engine."""


@dataclass(frozen=True)
class ClientResult:
    """What one client sends back."""

    theta: Tensor  # (P,), theta_K
    own: dict[str, Tensor]  # name: (P,), its own vectors after the round
    loss: float  # mean data loss f_i over its local steps, each weighed by its samples
    samples: int  # samples that its steps passed through the network


def train_client(
    world: World, model: nn.Module, t: int, k: int, w: Tensor, own: Mapping[str, Tensor], server: Mapping[str, Tensor]
) -> ClientResult:
    """Run client k's local steps of round t from the model `w` (P,), with vectors `own` and `server`.

    `model` lends its form; its parameters are left pointing at theta_K. What it and the algorithm draw at random is the
    client's own in that round.
    """
    given = {"w": w, "own": own, "server": server}
    with seeded(world.config.seed, "model", t, k), clients_named(world.config, t, given):
        return _train_client(world, model, t, k, w, own, server)


def _train_client(
    world: World, model: nn.Module, t: int, k: int, w: Tensor, own: Mapping[str, Tensor], server: Mapping[str, Tensor]
) -> ClientResult:
    config, algorithm = world.config, world.config.rules
    client = world.client(t, k, w, own, server)
    terms = algorithm.terms(client)
    inputs, labels = client_data(world, k)
    theta = w.clone()
    total, seen = 0.0, 0
    model.train()
    with arithmetic(config.precision, inputs.device):
        for step, batch in enumerate(client_batches(world, t, k)):
            x, y = take(inputs, batch), labels[batch.index]
            gradient = partial(loss_gradient, world, model, x, y)
            loss, client = local_step_(theta, gradient, client, terms, algorithm, client.eta, config, step)
            total += loss.item() * len(y)
            seen += len(y)
    after = algorithm.keep(client, theta - w)
    require_kept(config, t, after, own)
    return ClientResult(theta, after, total / seen, seen)


def client_batches(world: World, t: int, k: int) -> Iterator[Batch]:
    """What client k sees in round t, step by step, from its own stream."""
    config = world.config
    return local_batches(
        len(world.parts[k]),
        config,
        stream(config.seed, "client", t, k),
        augment=world.data.augment,
        steps=world.steps if config.rules.exact_steps else None,
    )


def client_data(world: World, k: int) -> tuple[Tensor, Tensor]:
    """Client k's normalised training images in the run's dtype, as `take` wants them, and labels (n_k,)."""
    split, index = world.data.train, torch.from_numpy(world.parts[k])
    images = _network_input(world, split.images[index])
    return pad(images) if world.data.augment else images, split.labels[index]


def take(images: Tensor, batch: Batch) -> Tensor:
    """The batch's images (b, c, h, w), augmented if the batch says so, laid out as convolutions like them on a CPU."""
    if batch.draws is not None:
        return crop(images, batch.index, batch.draws)
    return _laid_out(images[batch.index])


def loss_gradient(world: World, model: nn.Module, x: Tensor, y: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """(f, g) at the flat vector `at` (P,): cross-entropy f, and the gradient (P,) of f + zeta/2 R (see man.py)."""
    config = world.config
    parameters = bind(model, world, at)
    terms: list[Tensor] = []
    with autocast(config.precision, x.device):
        if config.man:
            outputs, terms = penalty_terms(model, x, config.man_layers, world.taps)
        else:
            outputs = model(x)
    logits = outputs.to(at.dtype)
    objective = loss = F.cross_entropy(logits, y)
    if config.zeta_logits:
        objective = objective + config.zeta_logits / 2 * logits.square().mean()
    objectives = [objective]
    if any(term.requires_grad for term in terms):
        objectives.append(torch.as_tensor(config.zeta / 2 * sum(terms)))  # by itself, since it lies on the CPU
    gradients = torch.autograd.grad(objectives, parameters, materialize_grads=True)
    return loss.detach(), torch.cat([g.reshape(-1) for g in gradients])


def bind(model: nn.Module, world: World, vector: Tensor) -> list[nn.Parameter]:
    """Make `model`'s parameters views of `vector` (P,), without a copy, and return them in the layout's order."""
    named = dict(model.named_parameters())
    for name, view in world.layout.views(vector).items():
        named[name].data = view
    return [named[name] for name in world.layout.names]


@torch.no_grad()
def score_chunk(world: World, model: nn.Module, vector: Tensor, start: int) -> Tensor:
    """Score the model with parameters `vector` (P,) on TEST_CHUNK test images from position `start`.

    Returns sums over them (2 + L,), float64: right answers, loss, and |a_l|^2 for each of L hidden layers.
    """
    bind(model, world, vector)
    model.eval()
    split = world.data.test
    x = _network_input(world, split.images[start : start + TEST_CHUNK])
    y = split.labels[start : start + TEST_CHUNK]
    taken: list[tuple[Tensor, Tensor]] = []

    def tap(activation: Tensor) -> Tensor:
        taken.append((activation, square_sum(activation)))  # now: the model may change it in place
        return activation

    with tap_activations(tap, world.taps.ignored), arithmetic("ieee", x.device), autocast("ieee", x.device):
        logits = model(x)
    right, loss = (logits.argmax(1) == y).sum(), F.cross_entropy(logits, y, reduction="sum")
    sums = [right, loss, *(total for a, total in taken if a is not logits)]
    return torch.stack([total.double() for total in sums])


def chunk_starts(split: Split) -> range:
    """Where each chunk of `split` begins."""
    return range(0, len(split.labels), TEST_CHUNK)


def add_up(chunks: Sequence[Sequence[float]], n: int) -> Evaluation:
    """Combine the scores of one model's chunks, in their order, into its evaluation on `n` samples."""
    right, loss, *activations = (sum(part) / n for part in zip(*chunks, strict=True))
    return Evaluation(right, loss, activations)


class SequentialEngine:
    """Runs the round's clients one by one in this process."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.model = world.new_model()

    def run(self, inputs: RoundInputs) -> RoundOutputs:
        """Train the participants of one round."""
        results = [
            train_client(
                self.world,
                self.model,
                inputs.t,
                k,
                inputs.w,
                {name: rows[slot] for name, rows in inputs.own.items()},
                inputs.server,
            )
            for slot, k in enumerate(inputs.ids)
        ]
        return RoundOutputs(
            theta=torch.stack([result.theta for result in results]),
            after={name: torch.stack([result.own[name] for result in results]) for name in inputs.own},
            losses=[result.loss for result in results],
            images=sum(result.samples for result in results),
        )

    def evaluate(self, models: Sequence[Tensor]) -> list[Evaluation]:
        """Evaluate each flat vector (P,) on the test set."""
        test = self.world.data.test
        return [
            add_up(
                [score_chunk(self.world, self.model, vector, start).tolist() for start in chunk_starts(test)],
                len(test.labels),
            )
            for vector in models
        ]

    def __enter__(self) -> "SequentialEngine":
        self.stack = ExitStack()
        self.stack.enter_context(one_thread())
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()


def _network_input(world: World, images: Tensor) -> Tensor:
    return _laid_out(normalise(images, world.data.mean, world.data.std, dtype=world.dtype))


def _laid_out(x: Tensor) -> Tensor:
    """Images (n, c, h, w) channels last; inputs of other shapes as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
