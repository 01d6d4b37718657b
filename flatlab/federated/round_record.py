"""What metrics.jsonl says of a round."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from torch import Tensor

from flatlab.federated.engine.base import Engine, Evaluation, RoundOutputs
from flatlab.federated.world import World
from flatlab.runs.metrics import Record


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
