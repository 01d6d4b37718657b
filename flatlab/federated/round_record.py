"""What metrics.jsonl says of a round, and which rounds it says of how good the model is."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import ceil

from torch import Tensor

from flatlab.federated.engine.base import Engine, Evaluation, RoundOutputs
from flatlab.federated.world import World
from flatlab.runs.metrics import Record

EVALUATION_SHARE = 0.05
"""Largest share of a round's work that evaluation takes where `eval_every` is 0."""


def evaluation_interval(world: World) -> int:
    """Rounds between evaluations: `eval_every`, or the fewest that keep evaluation within its share of the work.

    Work is counted in forward passes of one image; forward and backward together are three. "all" is counted whether
    the run reports it or not, so that runs that differ in this are evaluated in the same rounds.
    """
    config, rules = world.config, world.config.rules
    if config.eval_every:
        return config.eval_every
    passes = 3 * (2 if rules.ascent is not None else 1)
    training = passes * config.local_epochs * config.participation * len(world.data.train.labels)
    evaluation = (3 if rules.server_differs else 2) * len(world.data.test.labels)
    return ceil(evaluation / (EVALUATION_SHARE * training))


def training_record(world: World, done: int, ids: Sequence[int], outputs: RoundOutputs, seconds: float) -> Record:
    """Of the training of round number `done` (the first is 1), which took `seconds`, by the participants `ids`."""
    samples = [len(world.parts[k]) for k in ids]
    loss = sum(n * loss for n, loss in zip(samples, outputs.losses, strict=True)) / sum(samples)
    return {
        "round": done,
        "participants": ids,
        "lr": world.config.learning_rate(done - 1),
        "train_loss": loss,
        "images": outputs.images,
        "seconds": seconds,
        "images_per_second": outputs.images / seconds,
    }


def evaluation_record(models: Mapping[str, Tensor], reported: str, engine: Engine) -> Record:
    """Of every model (P,) on the test set, the `reported` one first."""
    results: dict[str, Evaluation] = dict(zip(models, engine.evaluate(list(models.values())), strict=True))
    headline = results[reported]
    return {
        "test_accuracy": headline.accuracy,
        "test_loss": headline.loss,
        "activation_norm": sum(headline.activation_norms),
        "models": {name: asdict(result) for name, result in results.items()},
    }
