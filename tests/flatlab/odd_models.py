"""Models of one's own that are odd in one way each; called as `function(input_shape=..., classes=...)`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """fc1, a function of it and of the module's other parts, fc2."""

    def __init__(self, pixels: int, classes: int, forward: Forward, **parts: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(pixels, 6), nn.Linear(6, classes)
        self.middle = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc2(self.middle(self, x.flatten(1)))
        return logits


def net(forward: Forward, parts: Callable[[], dict[str, Any]] = dict) -> Callable[..., nn.Module]:
    def build(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
        channels, height, width = input_shape
        return Net(channels * height * width, classes, forward, **parts())

    return build


def _tied_pair() -> dict[str, Any]:
    a, b = nn.Linear(6, 6), nn.Linear(6, 6)
    b.weight = a.weight
    return {"a": a, "b": b}


tied = net(lambda m, x: m.b(m.a(m.fc1(x)).relu()).relu(), _tied_pair)


gate_of_the_mean = net(lambda m, x: torch.sigmoid((h := m.fc1(x).relu()).mean(1))[:, None] * h)
"""Its nonlinearity returns one number per sample."""


def _one_under_two_names() -> dict[str, Any]:
    a = nn.Linear(6, 6)
    return {"a": a, "b": a}


shared = net(lambda m, x: m.b(m.a(m.fc1(x)).relu()).relu(), _one_under_two_names)


class _ReturnsNothing(Net):
    def to(self, *args: Any, **kwargs: Any) -> Any:
        super().to(*args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)

    def eval(self) -> Any:
        super().eval()


def returns_nothing(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Its own `to`, `train` and `eval` do what torch's do, and do not return the model."""
    channels, height, width = input_shape
    return _ReturnsNothing(channels * height * width, classes, lambda m, x: m.fc1(x).relu())


def tied_embedding(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The output layer's weight is the embedding's, and pixels are tokens."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(8, 6)
            self.pick = nn.Linear(6, 6)
            self.out = nn.Linear(6, 8, bias=False)
            self.out.weight = self.embedding.weight
            self.head = nn.Linear(8, classes)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(1).mul(2).long().clamp(-4, 3) + 4  # integers: no activation
            logits: Tensor = self.head(self.out(F.gelu(self.pick(self.embedding(tokens).mean(1)))))
            return logits

    return Tokens()


def frozen(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    model = net(lambda m, x: m.a(m.fc1(x).tanh()).tanh(), lambda: {"a": nn.Linear(6, 6)})(input_shape, classes)
    model.fc1.requires_grad_(False)
    return model


def recurrent(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(input_shape[2], 5, batch_first=True)
            self.head = nn.Linear(5, classes)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.lstm(x.flatten(1, 2))[1][0][-1])
            return logits

    return Rows()


def time_first(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Rows first, then samples, then units; written out, which a stack of clients can run."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(input_shape[2], 5)
            self.head = nn.Linear(5, classes)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.tanh(self.a(x.flatten(1, 2).transpose(0, 1))).mean(0))
            return logits

    return Rows()


def attention(input_shape: tuple[int, int, int], classes: int, batch_first: bool = True) -> nn.Module:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(input_shape[2], 4)
            self.mix = nn.MultiheadAttention(4, 2, batch_first=batch_first)
            self.head = nn.Linear(4, classes)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x.flatten(1, 2))
            logits: Tensor = self.head((x + self.mix(x, x, x, need_weights=False)[0]).mean(1))
            return logits

    return Attention()


def attention_over_the_batch(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return attention(input_shape, classes, batch_first=False)


def unlike(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Another buffer each time it is built."""
    table = torch.randn(6, generator=torch.Generator().manual_seed(next(_seeds)))
    return net(lambda m, x: m.fc1(x).relu() + m.table, lambda: {"table": table})(input_shape, classes)


_seeds = iter(range(1_000_000))


def forgetful(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Its state_dict lacks a bias."""
    model = net(lambda m, x: m.fc1(x).relu())(input_shape, classes)
    model.register_state_dict_post_hook(lambda module, state, *_: state.__delitem__("fc2.bias"))
    return model


def lazy(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))


def complex_weights(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return net(lambda m, x: m.fc1(x).relu(), lambda: {"c": nn.Parameter(torch.zeros(2, dtype=torch.complex64))})(
        input_shape, classes
    )


def all_frozen(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return net(lambda m, x: m.fc1(x).relu())(input_shape, classes).requires_grad_(False)


def returns_a_dict(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x}

    return Model()


def _in_place(m: Any, x: Tensor) -> Tensor:
    a = F.gelu(m.fc1(x))
    a.mul_(2)
    return a


def _dropout_in_place(m: Any, x: Tensor) -> Tensor:
    return F.dropout(F.silu(m.fc1(x)), 0.5, m.training, inplace=True)


def _ignored_return(m: Any, x: Tensor) -> Tensor:
    a: Tensor = m.fc1(x)
    F.leaky_relu(a, 0.2, inplace=True)
    return a


linear = net(lambda m, x: m.fc1(x))
relative_positions = net(lambda m, x: m.fc1(x[:, m.index]).relu(), lambda: {"index": torch.arange(12).flip(0)})
sinusoids = net(lambda m, x: m.fc1(x + m.table).relu(), lambda: {"table": torch.arange(12).sin()})
mask = net(
    lambda m, x: m.fc1(x).relu() + F.softmax(m.fc1(x) + m.mask, 1),
    lambda: {"mask": torch.tensor([0.0, 0, 0, 0, 0, -torch.inf])},
)
rotations = net(lambda m, x: m.fc1(x).relu(), lambda: {"table": torch.polar(torch.ones(3), torch.ones(3))})
dropout = net(lambda m, x: m.drop(m.fc1(x).relu()), lambda: {"drop": nn.Dropout(0.3)})
gated = net(lambda m, x: m.fc1(x).relu() * torch.sigmoid(m.gate), lambda: {"gate": nn.Parameter(torch.zeros(4, 6)[0])})
batch_norm = net(lambda m, x: m.norm(m.fc1(x)).relu(), lambda: {"norm": nn.BatchNorm1d(6)})
batch_norm_without_statistics = net(
    lambda m, x: m.norm(m.fc1(x)).relu(), lambda: {"norm": nn.BatchNorm1d(6, track_running_stats=False)}
)
instance_norm = net(
    lambda m, x: m.norm(m.fc1(x).view(-1, 2, 3)).flatten(1).relu(),
    lambda: {"norm": nn.InstanceNorm1d(2, track_running_stats=True)},
)
instance_norm_without_statistics = net(
    lambda m, x: m.norm(m.fc1(x).view(-1, 2, 3)).flatten(1).relu(), lambda: {"norm": nn.InstanceNorm1d(2)}
)
group_norm = net(lambda m, x: m.norm(m.fc1(x)).relu(), lambda: {"norm": nn.GroupNorm(2, 6)})
spectral_norm = net(
    lambda m, x: m.a(m.fc1(x)).relu(), lambda: {"a": nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))}
)
weight_norm = net(
    lambda m, x: m.a(m.fc1(x)).relu(), lambda: {"a": nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))}
)
in_place = net(_in_place)
dropout_in_place = net(_dropout_in_place)
ignored_return = net(_ignored_return)
checkpointed = net(lambda m, x: checkpoint(lambda z: m.fc1(z).tanh() * 1.0, x, use_reentrant=False))
reentrant = net(
    lambda m, x: checkpoint(lambda z: m.a(z).tanh(), m.fc1(x), use_reentrant=True), lambda: {"a": nn.Linear(6, 6)}
)
reentrant_from_the_images = net(lambda m, x: checkpoint(lambda z: m.fc1(z).tanh(), x, use_reentrant=True))


def normalised_tokens(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A normalised image made into tokens; torch misreads the gradient of one of them alone on a CPU."""
    channels, height, width = input_shape
    normalised = nn.Sequential(nn.Conv2d(channels, 3, 3, padding=1), nn.InstanceNorm2d(3, affine=True))

    class ToTokens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2).transpose(1, 2)

    return nn.Sequential(normalised, ToTokens(), nn.LayerNorm(3), nn.Flatten(), nn.Linear(3 * height * width, classes))
