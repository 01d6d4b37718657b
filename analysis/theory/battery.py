"""What `flatlab verify` computes without a checkpoint: the statements on toys and along training, and where MAN fails.

All in float64. Images are averaged to 4 x 4 pixels where a dense Hessian is taken, so that it stays small.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor, nn

from analysis.problem import make_problem
from analysis.spectrum import eigs
from analysis.theory.dense import dense_checks, dense_hessian, examine, examine_layers
from analysis.theory.statements import Check
from analysis.theory.toys import Activation, Penalty, Toys, accuracy, load_toys, new_toy, train_stack

DEPTHS, WIDTHS, SEEDS = (1, 2, 3), (6, 10), (0, 1)
ACTIVATIONS: tuple[Activation, ...] = ("relu", "tanh")
PENALTIES = (Penalty(), Penalty(0.5))
STEPS = 300
SAMPLES = 60  # on which the Hessian is taken
CLIENTS = (0, 12, 30, SAMPLES)  # bounds of three clients among the samples in order of class

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ToyChecks:
    """The checks on one toy."""

    depth: int  # hidden layers
    width: int
    activation: Activation
    zeta: float
    seed: int
    trained: bool
    smallest: float  # lambda_min(H) / |H|
    checks: Sequence[Check]


def battery(progress: Progress = lambda stage: None) -> Iterator[ToyChecks]:
    """Check the statements for every depth, width, nonlinearity, coefficient and seed, before and after training."""
    toys = load_toys(2)
    order = toys.y[:SAMPLES].argsort(stable=True)
    x, y = toys.x[order], toys.y[order]
    for depth, width, activation in product(DEPTHS, WIDTHS, ACTIVATIONS):
        progress(f"{depth} x {width} {activation}")
        cases = list(product(SEEDS, PENALTIES))
        models = [new_toy(toys, [width] * depth, activation, seed) for seed, _ in cases]
        for trained in (False, True):
            if trained:
                train_stack(models, [penalty for _, penalty in cases], toys, range(STEPS))
            for (seed, penalty), model in zip(cases, models, strict=True):
                if trained or penalty == PENALTIES[0]:
                    smallest, checks = _examined(model, x, y)
                    yield ToyChecks(depth, width, activation, penalty.zeta, seed, trained, smallest, checks)


def _examined(model: nn.Sequential, x: Tensor, y: Tensor) -> tuple[float, list[Check]]:
    network = examine(model, x, y)
    parts = [slice(start, end) for start, end in pairwise(CLIENTS)]
    clients = [((part.stop - part.start) / SAMPLES, dense_hessian(model, x[part], y[part])) for part in parts]
    return network.eigenvalues[0].item() / network.norm, dense_checks(network, clients)


MOMENTS = (0, 3, 10, 30, 60, 100, 200, 300, 500, 1000)
MOMENT_PENALTIES = (Penalty(), Penalty(0.05), Penalty(0.5))
MOMENT_SAMPLES = 200


@dataclass(frozen=True)
class Moment:
    """S1 and S2 at one step of training."""

    zeta: float
    step: int
    top: float  # lambda_max(H)
    smallest: float  # lambda_min(H)
    layers: float  # sum_l lambda_max(H_ll)
    blocks: int  # m

    @property
    def slack1(self) -> float:
        """Right side minus left side of S1."""
        return self.layers - self.top

    @property
    def slack2(self) -> float:
        """Right side minus left side of S2."""
        return self.slack1 - (self.blocks - 1) * self.smallest


def along_training(progress: Progress = lambda stage: None) -> list[Moment]:
    """S1 and S2 while a 16-10-10-10 ReLU network trains, without and with MAN."""
    progress("along training")
    toys = load_toys(2)
    models = [new_toy(toys, (10, 10), "relu", seed=0) for _ in MOMENT_PENALTIES]
    moments = []
    for begin, end in pairwise((0, *MOMENTS)):
        train_stack(models, MOMENT_PENALTIES, toys, range(begin, end))
        for model, penalty in zip(models, MOMENT_PENALTIES, strict=True):
            moments.append(_moment(model, toys.x[:MOMENT_SAMPLES], toys.y[:MOMENT_SAMPLES], penalty.zeta, end))
    return moments


def _moment(model: nn.Sequential, x: Tensor, y: Tensor, zeta: float, step: int) -> Moment:
    H = dense_hessian(model, x, y)
    values = torch.linalg.eigvalsh(H)
    tops = [torch.linalg.eigvalsh(H[layer.block, layer.block])[-1].item() for layer in examine_layers(model, x, y)]
    return Moment(zeta, step, values[-1].item(), values[0].item(), sum(tops), len(tops))


@dataclass(frozen=True)
class LayerShift:
    """One layer of a trained toy, and the two factors of its block."""

    name: str
    top: float  # lambda_max(H_ll)
    input_norm2: float  # mean |a~|^2, which MAN lowers except for the first layer
    curvature: float  # mean lambda_max(B_n), which it does not
    weight_norm2: float  # |W|_F^2


@dataclass(frozen=True)
class Shift:
    """Where the curvature of one trained toy lies."""

    zeta: float
    zeta_logits: float
    seed: int
    accuracy: float
    test_loss: float
    top: float  # lambda_max(H)
    layers: Sequence[LayerShift]


SHIFT_ZETAS, SHIFT_LOGITS, SHIFT_SEEDS = (0.0, 0.05, 0.15, 0.5), (0.0, 4.0), (0, 1, 2, 3)
SHIFT_STEPS, SHIFT_SAMPLES = 3000, 500


def shifts(progress: Progress = lambda stage: None) -> list[Shift]:
    """The known failure: 64-12-10-10 ReLU networks without and with MAN, and with the logits penalised beside it."""
    progress("where the curvature goes")
    toys = load_toys()
    cases = [(Penalty(zeta, logits), seed) for logits, zeta, seed in product(SHIFT_LOGITS, SHIFT_ZETAS, SHIFT_SEEDS)]
    models = [new_toy(toys, (12, 10), "relu", seed) for _, seed in cases]
    train_stack(models, [penalty for penalty, _ in cases], toys, range(SHIFT_STEPS))
    return [_shift(model, penalty, seed, toys) for model, (penalty, seed) in zip(models, cases, strict=True)]


def _shift(model: nn.Sequential, penalty: Penalty, seed: int, toys: Toys) -> Shift:
    x, y = toys.x[:SHIFT_SAMPLES], toys.y[:SHIFT_SAMPLES]
    report = eigs(make_problem(model, "cross_entropy", (x, y)))
    with torch.no_grad():
        test_loss = nn.functional.cross_entropy(model(toys.test_x), toys.test_y).item()
    return Shift(
        zeta=penalty.zeta,
        zeta_logits=penalty.zeta_logits,
        seed=seed,
        accuracy=accuracy(model, toys),
        test_loss=test_loss,
        top=report.eigenvalues[0].value,
        layers=[
            LayerShift(
                name=layer.name,
                top=spectrum.eigenvalues[0].value,
                input_norm2=layer.norms.mean().item(),
                curvature=layer.tops.mean().item(),
                weight_norm2=layer.linear.weight.detach().square().sum().item(),
            )
            for layer, spectrum in zip(examine_layers(model, x, y), report.layers, strict=True)
        ],
    )
