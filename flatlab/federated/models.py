"""The networks of the paper, multi-layer perceptrons, and the user's own, by name.

All keep PyTorch's default initialisation. Modules are named as a reader of a table of layers expects (conv1, fc1, ...),
and every nonlinearity is a module of its own, so that layers and activations can be found from outside.
"""

from collections import OrderedDict
from collections.abc import Sequence
from math import prod
from typing import Literal

from torch import Tensor, nn

from flatlab.errors import UsageError
from flatlab.functions import import_function, names_function

MODELS = ("mlp", "cifar-cnn", "tiny-convnet", "resnet18-gn")
"""The names that `build_model` knows; any other is read as `package.module:function`."""

Activation = Literal["relu", "tanh"]

MOST_PARAMETERS = 10**9
"""Of an mlp: 4 GB in single precision, before any client's vectors."""


def build_model(
    name: str,
    *,
    input_shape: tuple[int, ...],
    classes: int,
    hidden: Sequence[int] = (64, 32),
    activation: Activation = "relu",
) -> nn.Module:
    """Build the model called `name`, with fresh parameters drawn from torch's global generator.

    Args:
        name: one of `MODELS`, or `package.module:function`, a function that is called as
            `function(input_shape=..., classes=...)` and returns a `torch.nn.Module`.
        input_shape: (channels, height, width) of one image; the mlp and functions take inputs of any shape.
        classes: number of classes, the length of the logits.
        hidden: widths of the hidden layers, for "mlp" only.
        activation: nonlinearity, for "mlp" only.

    Returns:
        A module that maps (n, channels, height, width) to logits (n, classes).

    Raises:
        UsageError: no such model, images too small for it, or a user's function that is missing, fails, or returns
            something else than a module.
    """
    if name.startswith(("hf:", "timm:")):
        raise UsageError(
            f"{name} is measured (flatlab eigs --model {name}) but not trained by name: write a function that returns "
            "a module from inputs to logits, and name it as package.module:function."
        )
    if ":" in name:
        return _users_model(name, input_shape, classes)
    if name == "mlp":
        return mlp(input_shape, classes, hidden, activation)
    if name in MODELS and len(input_shape) != 3:
        raise UsageError(
            f"The model {name} needs images, but these inputs are of shape {input_shape}: choose mlp, or a function of "
            "your own as package.module:function."
        )
    if name == "cifar-cnn":
        return cifar_cnn(input_shape, classes)
    if name == "tiny-convnet":
        return tiny_convnet(input_shape, classes)
    if name == "resnet18-gn":
        return ResNet18GN(input_shape, classes)
    raise UsageError(
        f"There is no model called '{name}': choose one of {', '.join(MODELS)}, or name a function of your own as "
        "package.module:function."
    )


def default_model(dataset: str, input_shape: tuple[int, ...]) -> str:
    """Name the model that the paper, or common sense, pairs with a data set of images (channels, height, width)."""
    if names_function(dataset):
        return "mlp"
    known = {"digits": "mlp", "cifar10": "cifar-cnn", "cifar100": "cifar-cnn", "tiny-imagenet": "tiny-convnet"}
    return known.get(dataset, "cifar-cnn" if len(input_shape) == 3 and min(input_shape[1:]) >= 16 else "mlp")


def usual_model(dataset: str) -> str | None:
    """The model that "auto" stands for on a data set, where its name alone says so."""
    small, large = (default_model(dataset, shape) for shape in ((1, 8, 8), (3, 64, 64)))
    return small if small == large else None


def mlp(
    input_shape: tuple[int, ...], classes: int, hidden: Sequence[int] = (64, 32), activation: Activation = "relu"
) -> nn.Sequential:
    """Flatten, then fully connected layers of widths `hidden` with the nonlinearity between them, then logits."""
    if any(width < 1 for width in hidden):
        raise UsageError(f"The hidden widths of an mlp must be at least 1, but are {', '.join(map(str, hidden))}.")
    if activation not in ("relu", "tanh"):
        raise UsageError(f"The activation of an mlp is relu or tanh, not '{activation}'.")
    widths = [prod(input_shape), *hidden]
    size = sum(a * b for a, b in zip(widths, [*hidden, classes], strict=True))
    if size > MOST_PARAMETERS:
        raise UsageError(
            f"An mlp of hidden widths {', '.join(map(str, hidden))} has {size:.1e} weights on these images, of "
            f"{MOST_PARAMETERS:.0e} at most: choose narrower layers."
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (fan_in, fan_out) in enumerate(zip(widths, hidden, strict=False), start=1):
        layers[f"fc{i}"] = nn.Linear(fan_in, fan_out)
        layers[f"{activation}{i}"] = nn.ReLU() if activation == "relu" else nn.Tanh()
    layers[f"fc{len(widths)}"] = nn.Linear(widths[-1], classes)
    return nn.Sequential(layers)


def cifar_cnn(input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Build the paper's CIFAR network: two 5x5 convolutions of 64 channels, each pooled, then fc 384, 192, classes.

    At 3 x 32 x 32 the first fully connected layer sees 1600 numbers; 815,332 parameters with 100 classes.
    """
    channels, height, width = input_shape
    side = [((extent - 4) // 2 - 4) // 2 for extent in (height, width)]  # 5x5 without padding, pool 2, twice
    _require_pixels("cifar-cnn", input_shape, smallest=16, fits=min(side) >= 1)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 64, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(64, 64, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=FlattenPixels(),
            fc1=nn.Linear(64 * side[0] * side[1], 384),
            relu3=nn.ReLU(),
            fc2=nn.Linear(384, 192),
            relu4=nn.ReLU(),
            fc3=nn.Linear(192, classes),
        )
    )


def tiny_convnet(input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Build the paper's Tiny-ImageNet network: three 3x3 convolutions with GroupNorm(4), then fc 512, 384, classes.

    At 3 x 64 x 64 the first fully connected layer sees 4096 numbers; 2,447,688 parameters with 200 classes.
    """
    channels, height, width = input_shape
    side = [extent // 8 for extent in (height, width)]  # the padding keeps the size, pool 2 three times
    _require_pixels("tiny-convnet", input_shape, smallest=8, fits=min(side) >= 1)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in (1, 2, 3):
        layers[f"conv{i}"] = nn.Conv2d(channels if i == 1 else 64, 64, 3, padding=1)
        layers[f"norm{i}"] = nn.GroupNorm(4, 64)
        layers[f"relu{i}"] = nn.ReLU()
        layers[f"pool{i}"] = nn.MaxPool2d(2)
    layers["flatten"] = FlattenPixels()
    layers["fc1"] = nn.Linear(64 * side[0] * side[1], 512)
    layers["relu4"] = nn.ReLU()
    layers["fc2"] = nn.Linear(512, 384)
    layers["relu5"] = nn.ReLU()
    layers["fc3"] = nn.Linear(384, classes)
    return nn.Sequential(layers)


class FlattenPixels(nn.Flatten):
    """(n, c, h, w) -> (n, h * w * c), channels last.

    On activations that lie channels last this is a view, and so is its gradient; the usual order (c, h, w) would hand
    back a gradient in another layout, and every layer below would then mix the two, at ten times the cost of a ReLU.
    The features are the same in another order.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Flatten a batch of feature maps."""
        return x.permute(0, 2, 3, 1).flatten(1)


class ResNet18GN(nn.Module):
    """ResNet-18 in torchvision's layout (7x7 stem, stages of two basic blocks), GroupNorm(2) for every BatchNorm.

    Sources: He et al., "Deep Residual Learning for Image Recognition" (2016), table 1; Hsieh et al., "The Non-IID Data
    Quagmire of Decentralized Machine Learning" (2020), for GroupNorm in federated training. 11,227,812 parameters with
    3 channels and 100 classes. Any image size.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 64, 7, stride=2, padding=3, bias=False)
        self.norm1 = nn.GroupNorm(2, 64)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.pool2 = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(512, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, height, width) to logits (n, classes)."""
        x = self.pool1(self.relu1(self.norm1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.flatten(self.pool2(x)))
        return logits


class BasicBlock(nn.Module):
    """relu(F(x) + x), F two 3x3 convolutions with GroupNorm(2); a 1x1 convolution on x where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(2, channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(2, channels)
        self.relu2 = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False),
                    norm=nn.GroupNorm(2, channels),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels_in, h, w) to (n, channels, h / stride, w / stride)."""
        residual = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        activation: Tensor = self.relu2(residual + self.downsample(x))
        return activation


def _require_pixels(name: str, input_shape: tuple[int, ...], *, smallest: int, fits: bool) -> None:
    if not fits:
        _, height, width = input_shape
        raise UsageError(
            f"The model {name} needs images of at least {smallest} x {smallest} pixels, but these are "
            f"{height} x {width}: choose another, for instance mlp."
        )


def _users_model(name: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    function = import_function(name, "model")
    try:
        model = function(input_shape=input_shape, classes=classes)
    except Exception as error:
        raise UsageError(
            f"The model function {name}, called with input_shape={input_shape} and classes={classes}, raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"The model function {name} must return a torch.nn.Module, but returned {type(model).__name__}."
        )
    return model
